// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sets the machine's clock to the host's. A guest without a network has no other clock, and TLS fails with a wrong
//! one.

use std::time::Duration;

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

/// Sets the wall clock to `unix_ns` nanoseconds since the epoch.
pub(crate) fn set(unix_ns: u64) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(unix_ns)))
}
