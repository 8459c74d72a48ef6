// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent that `build.rs` embedded into this binary.

static EMBEDDED: &[u8] = include_bytes!(env!("WAGGLE_AGENT_FILE"));

/// The version of the protocol that both the agent and this program speak.
pub const PROTOCOL: u32 = waggle_protocol::VERSION;

/// Returns the static agent binary, or `None` if it was not built before the host. Machines cannot start without an
/// agent, and the caller's error should suggest `./taskw build`.
#[must_use]
pub fn embedded() -> Option<&'static [u8]> {
    (!EMBEDDED.is_empty()).then_some(EMBEDDED)
}

#[cfg(test)]
mod tests {
    use super::embedded;

    #[test]
    fn embedded_agent_is_an_elf_program() {
        if let Some(agent) = embedded() {
            assert_eq!(&agent[..4], b"\x7fELF");
        }
    }
}
