// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits the number of concurrent calls, in total and for each principal.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use waggle_shared::mutex::lock;

use crate::{domain::principal::Principal, service::fault::CallerFault};

/// The limits of concurrent calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallLimits {
    /// Maximum number of calls of all principals together.
    pub calls_max: usize,
    /// Maximum number of calls of one principal, so that one principal cannot use up all calls.
    pub calls_per_principal_max: usize,
}

/// Counts running calls and enforces the limits.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    limits: CallLimits,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    total: usize,
    by_principal: HashMap<Principal, usize>,
}

/// A permit for one call. The call counts as running until the permit is dropped.
#[derive(Debug)]
pub(super) struct CallPermit {
    owner: Principal,
    running: Arc<Mutex<Running>>,
}

impl Admission {
    pub(super) fn new(limits: CallLimits) -> Self {
        Self { limits, running: Arc::default() }
    }

    /// Returns a permit for one call.
    ///
    /// # Errors
    /// [`CallerFault::TooManyCalls`] if a limit is reached.
    pub(super) fn admit(&self, owner: &Principal) -> Result<CallPermit, CallerFault> {
        let mut running = lock(&self.running);
        let own = running.by_principal.get(owner).copied().unwrap_or_default();
        let CallLimits { calls_max, calls_per_principal_max } = self.limits;
        if own >= calls_per_principal_max {
            return Err(CallerFault::TooManyCalls { whose: "you have", calls_max: calls_per_principal_max });
        }
        if running.total >= calls_max {
            return Err(CallerFault::TooManyCalls { whose: "the server has", calls_max });
        }
        running.total += 1;
        running.by_principal.insert(owner.clone(), own + 1);
        Ok(CallPermit { owner: owner.clone(), running: Arc::clone(&self.running) })
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        running.total = running.total.saturating_sub(1);
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
    fn enforces_both_limits() {
        let admission = Admission::new(CallLimits { calls_max: 3, calls_per_principal_max: 2 });
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let calls = [admission.admit(&ada).unwrap(), admission.admit(&ada).unwrap()];
        assert!(matches!(admission.admit(&ada), Err(CallerFault::TooManyCalls { whose: "you have", calls_max: 2 })));
        let last = admission.admit(&bob).unwrap();
        assert!(matches!(admission.admit(&bob), Err(CallerFault::TooManyCalls { whose: "the server has", .. })));
        drop((calls, last));
        let running = lock(&admission.running);
        assert_eq!((running.total, running.by_principal.len()), (0, 0));
    }
}
