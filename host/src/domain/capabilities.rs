// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Capabilities of a guest, as its agent reports them.

/// Capabilities of a guest, detected by its agent at startup.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// Whether the agent came with the image or from the host.
    pub agent_origin: AgentOrigin,
    /// The version and build that the agent reports. The text is limited in length and contains only printable
    /// characters.
    pub agent_build: String,
    /// Names of the interpreters and package managers that the agent looked for and found.
    pub programs: Vec<String>,
}

impl Capabilities {
    /// Whether the guest has the program on its search path.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.programs.iter().any(|found| found == program)
    }
}

/// The source of the agent that serves in a guest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AgentOrigin {
    /// The copy that the host put into the initial root.
    #[default]
    Host,
    /// The copy that came with the image.
    Image,
}
