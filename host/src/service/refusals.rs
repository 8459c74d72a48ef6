// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Network refusals of one environment: counted, and logged for the operator within the log limit.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use waggle_shared::mutex::lock;

use crate::{
    domain::{egress::Refused, environment_id::EnvironmentId},
    log_limit,
};

/// The refusals of one environment.
#[derive(Debug)]
pub(crate) struct Refusals {
    id: EnvironmentId,
    count: AtomicU64,
    last: Mutex<Option<Refused>>,
}

impl Refusals {
    pub(crate) fn new(id: EnvironmentId) -> Self {
        Self { id, count: AtomicU64::new(0), last: Mutex::new(None) }
    }

    pub(crate) fn note(&self, refused: &Refused) {
        self.count.fetch_add(1, Relaxed);
        if let Some(left_out) = log_limit::admitted(self.id) {
            let environment = self.id;
            if refused.exceeds_a_rate() {
                tracing::warn!(%environment, %refused, left_out, "a guest exceeded a rate of its network");
            } else {
                tracing::warn!(%environment, destination = %refused, left_out, "the network policy refused a guest");
            }
        }
        *lock(&self.last) = Some(refused.clone());
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    #[must_use]
    pub(crate) fn last(&self) -> Option<Refused> {
        lock(&self.last).clone()
    }
}
