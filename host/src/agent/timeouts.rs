// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The timeouts of a call link.

use std::time::Duration;

/// The timeouts of one link. The default is for machines; tests use shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From a connection to the agent's hello. An agent sends the hello as soon as it connects. In an emulated guest
    /// this takes a second.
    pub hello: Duration,
    /// Interval at which the host sets the guest's clock. The guest has no other time source.
    pub clock_interval: Duration,
    /// From a `PowerOff` or `SetClock` request to the agent's reply.
    pub control: Duration,
    /// Limit of consecutive `SetClock` requests without a reply. At the limit the link ends. A guest that swaps or is
    /// paused may fail to reply to one or two.
    pub unanswered_max: u32,
    /// Added to a command's timeout. The agent ends the command at the timeout; the host ends the call this much later.
    pub deadline_grace: Duration,
    /// From a cancel to the call's last reply. The agent kills a command within milliseconds, but output in transit
    /// arrives before the last reply.
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
            unanswered_max: 4,
            deadline_grace: Duration::from_secs(15),
            cancel: Duration::from_secs(10),
            file: Duration::from_secs(120),
        }
    }
}
