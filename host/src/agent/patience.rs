// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How long the host waits for a guest, for what.

use std::time::Duration;

/// The waits of one link. The default is for machines; tests take shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a connection to its hello. An agent that dials has both ready; emulation takes a second.
    pub hello: Duration,
    /// Between two settings of the guest's clock, which has nothing else to go by.
    pub clock_interval: Duration,
    /// For an agent to confirm that the machine may go off, or that it took the time.
    pub control: Duration,
    /// So many settings of the clock in a row that went unanswered end the link. A guest that swaps or is paused misses
    /// one or two.
    pub unanswered_max: u32,
    /// Added to a command's own deadline before the host stops believing that the agent will end it.
    pub deadline_grace: Duration,
    /// From a cancel to the last reply. Killing is a matter of milliseconds; output that is on its way comes first.
    pub cancel: Duration,
    /// For a file call: ten mebibytes take a fraction of a second even under emulation, a full disk longer.
    pub file: Duration,
}

impl Default for Patience {
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
