// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The libkrunfw that was embedded when this binary was built, if one was; `build.rs` compresses it.

static COMPRESSED: &[u8] = include_bytes!(env!("WAGGLE_FIRMWARE_FILE"));

/// A library that travels in this program.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedFirmware {
    /// The library's file name, which ends with its version.
    pub name: &'static str,
    /// Of the library, in hexadecimal digits.
    pub sha256: &'static str,
    /// The library's size.
    pub bytes: u64,
    /// In gzip's format.
    pub compressed: &'static [u8],
}

/// What was embedded. A plain `cargo build` embeds nothing; `./taskw build` does.
#[must_use]
pub fn embedded() -> Option<EmbeddedFirmware> {
    let bytes = env!("WAGGLE_FIRMWARE_BYTES").parse().ok()?;
    let firmware = EmbeddedFirmware {
        name: env!("WAGGLE_FIRMWARE_NAME"),
        sha256: env!("WAGGLE_FIRMWARE_SHA256"),
        bytes,
        compressed: COMPRESSED,
    };
    (!COMPRESSED.is_empty()).then_some(firmware)
}
