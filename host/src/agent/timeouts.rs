// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The timeouts of a call link.

use std::time::Duration;

/// The timeouts of one link. The default is for machines; tests use shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From a connection to the agent's hello. An agent that dials sends both at once; emulation takes a second.
    pub hello: Duration,
    /// Interval of setting the guest's clock, which has no other source.
    pub clock_interval: Duration,
    /// For the agent to confirm a power-off or a clock setting.
    pub control: Duration,
    /// Limit of consecutive clock settings without a reply; the link ends at it. A guest that swaps or is paused misses
    /// one or two.
    pub unanswered_max: u32,
    /// Added to a command's own timeout before the host stops relying on the agent to end it.
    pub deadline_grace: Duration,
    /// From a cancel to the last reply. Killing takes milliseconds; output in transit comes first.
    pub cancel: Duration,
    /// For a file call: ten mebibytes take a fraction of a second even under emulation, a full disk longer.
    pub file: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(30),
            clock_interval: Duration::from_secs(30),
            control: Duration::from_secs(5),
            unanswered_max: 4,
            deadline_grace: Duration::from_secs(15),
            cancel: Duration::from_secs(10),
            file: Duration::from_secs(120),
        }
    }
}
