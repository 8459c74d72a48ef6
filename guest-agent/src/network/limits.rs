// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Times that connections of programs and connections to the DNS server have in common.

use std::time::Duration;

/// Delay after a failed `accept`, which means that the kernel is out of memory or descriptors.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Timeout at a limit of connections: if none ends within this time, a further one fails.
pub(super) const FULL_MAX: Duration = Duration::from_secs(5);
