// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent that was embedded when this binary was built; `build.rs` finds it.

static EMBEDDED: &[u8] = include_bytes!(env!("WAGGLE_AGENT_FILE"));

/// The version of the protocol that it speaks, as this program does.
pub const PROTOCOL: u32 = waggle_protocol::VERSION;

/// The static agent binary, or nothing where it had not been built before the host: then machines cannot start, and
/// the error should say to run `./taskw build`.
#[must_use]
pub fn embedded() -> Option<&'static [u8]> {
    (!EMBEDDED.is_empty()).then_some(EMBEDDED)
}

#[cfg(test)]
mod tests {
    use super::embedded;

    #[test]
    fn an_embedded_agent_is_an_elf_program() {
        if let Some(agent) = embedded() {
            assert_eq!(&agent[..4], b"\x7fELF");
        }
    }
}
