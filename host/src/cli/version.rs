// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle version` and `waggle licences`: the versions and the licences of the program and its embedded parts.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::machines::{FIRMWARE_ABI, agent_binary, firmware_binary};

const OWN: &str = include_str!("../../../LICENSE");
/// The licences that must accompany the firmware.
const FIRMWARE: [&str; 3] = [
    include_str!("../../../images/firmware/NOTICE"),
    include_str!("../../../images/firmware/LGPL-2.1.txt"),
    include_str!("../../../images/firmware/GPL-2.0.txt"),
];

/// Prints the version of the program, of the agent and of the firmware.
pub(super) fn print(out: &mut impl Write) -> io::Result<()> {
    let (commit, date) = (env!("WAGGLE_COMMIT"), env!("WAGGLE_BUILD_DATE"));
    writeln!(out, "waggle {} (commit {commit}, built {date})", env!("CARGO_PKG_VERSION"))?;
    match agent_binary::embedded() {
        Some(agent) => {
            let digest = format!("{:x}", Sha256::digest(agent));
            writeln!(out, "guest agent   {} bytes, protocol {}, sha256 {digest}", agent.len(), agent_binary::PROTOCOL)?;
        }
        None => writeln!(out, "guest agent   not in this build")?,
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
        None => writeln!(out, "firmware      not in this build; libkrunfw must be on the host"),
    }
}

/// Prints the licences of the program and of its embedded parts.
pub(super) fn print_licences(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "waggle\n\n{OWN}")?;
    if firmware_binary::embedded().is_some() {
        for text in FIRMWARE {
            writeln!(out, "\n\n{text}")?;
        }
    }
    Ok(())
}
