// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How many calls run at once, all together and of each principal.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::{domain::principal::Principal, mutex::lock, service::fault::CallerFault};

/// How many calls may run at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallLimits {
    /// Of all principals together.
    pub calls_max: usize,
    /// Of one principal, so that it leaves room for others.
    pub calls_per_principal_max: usize,
}

/// Counts calls.
#[derive(Debug)]
pub(super) struct Admission {
    limits: CallLimits,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    all: usize,
    by_principal: HashMap<Principal, usize>,
}

/// One call that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    owner: Principal,
    running: Arc<Mutex<Running>>,
}

impl Admission {
    pub(super) fn new(limits: CallLimits) -> Self {
        Self { limits, running: Arc::default() }
    }

    /// Counts one more call.
    ///
    /// # Errors
    /// [`CallerFault::TooManyCalls`] says whose calls are too many.
    pub(super) fn begin(&self, owner: &Principal) -> Result<Admitted, CallerFault> {
        let mut running = lock(&self.running);
        let own = running.by_principal.get(owner).copied().unwrap_or_default();
        let CallLimits { calls_max, calls_per_principal_max } = self.limits;
        if own >= calls_per_principal_max {
            return Err(CallerFault::TooManyCalls { whose: "you have", calls_max: calls_per_principal_max });
        }
        if running.all >= calls_max {
            return Err(CallerFault::TooManyCalls { whose: "the server has", calls_max });
        }
        running.all += 1;
        running.by_principal.insert(owner.clone(), own + 1);
        Ok(Admitted { owner: owner.clone(), running: Arc::clone(&self.running) })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        running.all = running.all.saturating_sub(1);
        if let Some(own) = running.by_principal.get_mut(&self.owner) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                running.by_principal.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_together_and_for_each_principal() {
        let admission = Admission::new(CallLimits { calls_max: 3, calls_per_principal_max: 2 });
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let calls = [admission.begin(&ada).unwrap(), admission.begin(&ada).unwrap()];
        assert!(matches!(admission.begin(&ada), Err(CallerFault::TooManyCalls { whose: "you have", calls_max: 2 })));
        let last = admission.begin(&bob).unwrap();
        assert!(matches!(admission.begin(&bob), Err(CallerFault::TooManyCalls { whose: "the server has", .. })));
        drop((calls, last));
        let running = lock(&admission.running);
        assert_eq!((running.all, running.by_principal.len()), (0, 0));
    }
}
