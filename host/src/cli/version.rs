// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle version` and `waggle licences`: what this program is, what travels in it, and under which terms.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::{
    machines::agent_binary,
    machines::{FIRMWARE_ABI, firmware_binary},
};

const OWN: &str = include_str!("../../../LICENSE");
/// The firmware is other people's work; whoever hands it on has to hand on these.
const FIRMWARE: [&str; 3] = [
    include_str!("../../../images/firmware/NOTICE"),
    include_str!("../../../images/firmware/LGPL-2.1.txt"),
    include_str!("../../../images/firmware/GPL-2.0.txt"),
];

/// The program, the agent and the firmware in it.
pub(super) fn print(out: &mut impl Write) -> io::Result<()> {
    let (commit, date) = (env!("WAGGLE_COMMIT"), env!("WAGGLE_BUILD_DATE"));
    writeln!(out, "waggle {} (commit {commit}, built {date})", env!("CARGO_PKG_VERSION"))?;
    match agent_binary::embedded() {
        Some(agent) => {
            let digest = format!("{:x}", Sha256::digest(agent));
            writeln!(out, "guest agent   {} bytes, protocol {}, sha256 {digest}", agent.len(), agent_binary::PROTOCOL)?;
        }
        None => writeln!(out, "guest agent   none in this build")?,
    }
    match firmware_binary::embedded() {
        Some(firmware) => {
            let (name, bytes, packed) = (firmware.name, firmware.bytes, firmware.compressed.len());
            writeln!(
                out,
                "firmware      {name}, {bytes} bytes ({packed} packed), ABI {FIRMWARE_ABI}, sha256 {}",
                firmware.sha256
            )
        }
        None => writeln!(out, "firmware      none in this build; libkrunfw is looked for on the host"),
    }
}

/// The texts that go with this program.
pub(super) fn print_licences(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "waggle\n\n{OWN}")?;
    if firmware_binary::embedded().is_some() {
        for text in FIRMWARE {
            writeln!(out, "\n\n{text}")?;
        }
    }
    Ok(())
}
