// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Derives the maximum number of flows from the process's limit of file descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Upper bound to which this module raises the process's descriptor limit.
const DESCRIPTORS_MAX: u64 = 65_536;

/// Raises the process's descriptor limit as far as allowed. Returns half of the descriptors as the maximum number of
/// flows. The other half is for all other files.
#[must_use]
pub fn flows_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = Rlimit { current: Some(hard.min(DESCRIPTORS_MAX)), maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let current = if raised { hard.min(DESCRIPTORS_MAX) } else { limit.current.unwrap_or(DESCRIPTORS_MAX) };
    usize::try_from(current / 2).unwrap_or(usize::MAX).clamp(1, tokio::sync::Semaphore::MAX_PERMITS)
}
