// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Exit codes other than a command's own, as shells and timeout(1) use them.

/// The command timed out, as in timeout(1).
pub(super) const TIMED_OUT: u8 = 124;
/// The reader closed the output: 128 + SIGPIPE.
pub(super) const BROKEN_PIPE: u8 = 141;
/// Interrupted: 128 + SIGINT.
pub(super) const INTERRUPTED: u8 = 130;
/// Terminated: 128 + SIGTERM.
pub(super) const TERMINATED: u8 = 143;
