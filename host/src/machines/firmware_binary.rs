// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The compressed libkrunfw that `build.rs` embedded into this binary, if any.

static COMPRESSED: &[u8] = include_bytes!(env!("WAGGLE_FIRMWARE_FILE"));

#[derive(Clone, Copy, Debug)]
pub struct EmbeddedFirmware {
    /// The library's file name, including the version.
    pub name: &'static str,
    /// SHA-256 of the uncompressed library, in hexadecimal.
    pub sha256: &'static str,
    /// Size of the uncompressed library.
    pub bytes: u64,
    /// The library in gzip format.
    pub compressed: &'static [u8],
}

/// Returns the embedded library. `./taskw build` embeds one; a plain `cargo build` does not.
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
