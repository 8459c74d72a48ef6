// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that the agent makes in the guest's `/tmp`, named `waggle_<12 hex>.<extension>`: code to run, output to keep.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use waggle_protocol::request::User;

use crate::guest::{SANDBOX_ID, Served};

/// Only its user reads it: code and output may hold secrets.
const MODE: u32 = 0o600;

/// Longest extension, in bytes.
const EXTENSION_BYTES_MAX: usize = 8;

/// The folder, as the guest sees it.
const FOLDER: &str = "/tmp";

/// A file in `/tmp`. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    file: File,
    name: String,
    /// In the agent's view, for removal.
    place: Option<PathBuf>,
}

impl TemporaryFile {
    /// Makes an empty file that belongs to `user`.
    pub(crate) fn create(served: &Served, extension: &str, user: User) -> io::Result<Self> {
        if extension.is_empty()
            || extension.len() > EXTENSION_BYTES_MAX
            || !extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an extension is a few letters or digits"));
        }
        let mut random = [0; 6];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("waggle_{hex}.{extension}");
        let place = served.place(FOLDER).join(&name);
        // An existing name, a link included, is refused rather than followed.
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&place)?;
        let temporary = Self { file, name, place: Some(place) };
        if served.room.is_some() && user == User::Sandbox {
            fchown(&temporary.file, Some(SANDBOX_ID), Some(SANDBOX_ID))?;
        }
        Ok(temporary)
    }

    /// The file, for writing.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where the file lies, in the agent's view.
    pub(crate) fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// Where the file lies, as the guest sees it.
    pub(crate) fn guest_path(&self) -> String {
        format!("{FOLDER}/{}", self.name)
    }

    /// Lets the file stay; whoever takes its place removes it.
    pub(crate) fn keep(mut self) -> Option<PathBuf> {
        self.place.take()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            // The guest may have removed it itself.
            let _removed = fs::remove_file(place);
        }
    }
}
