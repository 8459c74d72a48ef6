// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The temporary file that a call's code runs from: `/tmp/waggle_<12 hex>.<extension>`, gone when the call is over.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use waggle_protocol::request::User;

use crate::guest::{SANDBOX_ID, Served};

/// Only its user reads it: code may hold secrets.
const MODE: u32 = 0o600;

/// Longest extension, in bytes.
const EXTENSION_BYTES_MAX: usize = 8;

/// A script's file. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct ScriptFile {
    file: File,
    /// In the agent's view, for removal.
    place: PathBuf,
}

impl ScriptFile {
    /// Makes an empty file in the guest's `/tmp`, owned by `user`.
    pub(crate) fn create(served: &Served, extension: &str, user: User) -> io::Result<Self> {
        if extension.is_empty()
            || extension.len() > EXTENSION_BYTES_MAX
            || !extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a script's extension is a few letters or digits"));
        }
        let mut random = [0; 6];
        fill_random(&mut random)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let place = served.place("/tmp").join(format!("waggle_{hex}.{extension}"));
        // An existing name, a link included, is refused rather than followed.
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&place)?;
        let script = Self { file, place };
        if served.room.is_some() && user == User::Sandbox {
            fchown(&script.file, Some(SANDBOX_ID), Some(SANDBOX_ID))?;
        }
        Ok(script)
    }

    /// Appends bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Where the file lies, in the agent's view, which in a machine is the guest's.
    pub(crate) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        // The code may have removed it itself.
        drop(fs::remove_file(&self.place));
    }
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut File::open("/dev/urandom")?, bytes)
}
