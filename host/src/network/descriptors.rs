// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How many flows this process has descriptors for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many descriptors as are asked for at the most.
const WANTED: u64 = 65_536;

/// Raises this process's limit as far as it may, and leaves half of what there is to everything else.
#[must_use]
pub fn flows_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = Rlimit { current: Some(hard.min(WANTED)), maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let current = if raised { hard.min(WANTED) } else { limit.current.unwrap_or(WANTED) };
    usize::try_from(current / 2).unwrap_or(usize::MAX).clamp(1, tokio::sync::Semaphore::MAX_PERMITS)
}
