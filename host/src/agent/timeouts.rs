// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The timeouts of a call link.

use std::time::Duration;

/// The timeouts of one link. The default is for machines; tests use shorter timeouts.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Maximum time from the agent's first message to the end of the greeting. An emulated guest needs a fraction of a
    /// second.
    pub hello: Duration,
    /// Interval at which the host sets the guest's clock. The guest has no other time source.
    pub clock_interval: Duration,
    /// Maximum time from a `PowerOff` or `SetClock` request to the agent's reply.
    pub control: Duration,
    /// Maximum time from a `Hold` request to the agent's reply. The agent first writes all data to the disk.
    pub hold: Duration,
    /// Maximum number of consecutive `SetClock` requests without a valid reply. At this number the link ends. A guest
    /// that swaps or is paused may leave one or two requests unanswered.
    pub unanswered_max: u32,
    /// Time added to a command's timeout. The agent ends the command at the timeout; the host ends the call this much
    /// later.
    pub deadline_grace: Duration,
    /// Maximum time from a cancel to the call's last reply. The agent kills a command within milliseconds, but output
    /// in transit arrives before the last reply.
    pub cancel: Duration,
    /// Timeout of a file call. Even an emulated guest handles 10 MiB in a fraction of a second, but a full disk is
    /// slower.
    pub file: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(30),
            clock_interval: Duration::from_secs(30),
            control: Duration::from_secs(5),
            hold: Duration::from_secs(10),
            unanswered_max: 4,
            deadline_grace: Duration::from_secs(15),
            cancel: Duration::from_secs(10),
            file: Duration::from_secs(120),
        }
    }
}
