// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Exit codes other than a command's own, as shells and timeout(1) use them.

/// The time limit passed, as timeout(1) reports it.
pub(super) const TIMED_OUT: u8 = 124;
/// The reader of the output closed it: 128 + SIGPIPE.
pub(super) const BROKEN_PIPE: u8 = 141;
/// Interrupted: 128 + SIGINT.
pub(super) const INTERRUPTED: u8 = 130;
/// Terminated: 128 + SIGTERM.
pub(super) const TERMINATED: u8 = 143;
