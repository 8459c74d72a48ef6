// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits the number of concurrent calls, in total and for each principal.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use waggle_shared::mutex::lock;

use crate::{
    domain::{principal::Principal, shared_limit::SharedLimit},
    service::{callers::Callers, fault::CallerFault},
};

/// The limits of concurrent calls.
#[derive(Clone, Debug)]
pub struct CallLimits {
    /// Maximum number of calls of all principals together, and of each of them.
    pub limit: SharedLimit,
    pub callers: Callers,
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
        let (calls_max, share) = (self.limits.limit.all, self.limits.limit.share(self.limits.callers.count()));
        if share < calls_max && own >= share {
            return Err(CallerFault::TooManyCalls { whose: "you have", calls_max: share });
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
    use tokio::sync::watch;

    use super::*;
    use crate::domain::tokens::Tokens;

    #[test]
    fn enforces_both_limits() {
        let admission = Admission::new(CallLimits {
            limit: SharedLimit { all: 3, per_caller: Some(2) },
            callers: Callers::default(),
        });
        let [ada, bob] = ["ada", "bob"].map(|name| name.parse::<Principal>().unwrap());
        let calls = [admission.admit(&ada).unwrap(), admission.admit(&ada).unwrap()];
        assert!(matches!(admission.admit(&ada), Err(CallerFault::TooManyCalls { whose: "you have", calls_max: 2 })));
        let last = admission.admit(&bob).unwrap();
        assert!(matches!(admission.admit(&bob), Err(CallerFault::TooManyCalls { whose: "the server has", .. })));
        drop((calls, last));
        let running = lock(&admission.running);
        assert_eq!((running.total, running.by_principal.len()), (0, 0));
    }

    #[test]
    fn one_of_several_callers_gets_half_of_the_calls_by_default() {
        let text = |name: &str, token: char| format!("{name} {}\n", token.to_string().repeat(32));
        let tokens = Tokens::parse(&(text("ada", 'a') + &text("bob", 'b'))).unwrap();
        let (callers, limit) = (Callers::default(), SharedLimit { all: 64, per_caller: None });
        callers.count_in(watch::channel(Arc::new(tokens)).1);
        let admission = Admission::new(CallLimits { limit, callers });
        let ada = "ada".parse::<Principal>().unwrap();
        let admitted: Vec<_> = (0..64).filter_map(|_| admission.admit(&ada).ok()).collect();
        assert_eq!(admitted.len(), 32);
        let alone = Admission::new(CallLimits { limit, callers: Callers::default() });
        assert_eq!((0..65).filter_map(|_| alone.admit(&ada).ok()).collect::<Vec<_>>().len(), 64);
    }
}
