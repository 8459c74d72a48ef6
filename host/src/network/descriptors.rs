// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The number of flows that this process has file descriptors for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Upper bound of the descriptor limit that the process sets itself.
const DESCRIPTORS_MAX: u64 = 65_536;

/// Raises the process's descriptor limit as far as allowed and returns half of it; the other half is for everything
/// else.
#[must_use]
pub fn flows_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = Rlimit { current: Some(hard.min(DESCRIPTORS_MAX)), maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let current = if raised { hard.min(DESCRIPTORS_MAX) } else { limit.current.unwrap_or(DESCRIPTORS_MAX) };
    usize::try_from(current / 2).unwrap_or(usize::MAX).clamp(1, tokio::sync::Semaphore::MAX_PERMITS)
}
