// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that the agent makes in the guest's `/tmp`, named `waggle_<12 hex>.<extension>`: code to run, stdin, output to
//! keep.
//!
//! The agent is root and `/tmp` is everyone's: files are made in the folder that was there before any user work, under
//! names that nothing has, and no link is followed. Making and removing wait for the folder, which user work can hold
//! up, so both are done off the runtime's thread.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use tokio::{runtime::Handle, task::spawn_blocking};
use waggle_protocol::request::User;

use crate::guest::Served;

/// Only its user reads it: code and output may hold secrets.
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Longest extension, in bytes.
const EXTENSION_BYTES_MAX: usize = 8;

/// The folder, as the guest sees it.
const FOLDER: &str = "/tmp";

/// A file in `/tmp`. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    file: File,
    name: Name,
    /// In the agent's view.
    place: PathBuf,
}

/// A name in `/tmp`. Dropping it removes what has it.
#[derive(Debug)]
pub(crate) struct Name {
    tmp: Option<OwnedFd>,
    name: String,
}

impl TemporaryFile {
    /// Makes an empty file that belongs to `user`.
    pub(crate) async fn create(served: &Served, extension: &str, user: User) -> io::Result<Self> {
        if extension.is_empty()
            || extension.len() > EXTENSION_BYTES_MAX
            || !extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an extension is a few letters or digits"));
        }
        let name = format!("waggle_{}.{extension}", random_hex()?);
        let place = served.place(FOLDER).join(&name);
        let tmp = served.tmp()?;
        let made = spawn_blocking(move || create_in(tmp, name)).await.map_err(io::Error::other)?;
        let (file, name) = made?;
        let temporary = Self { file, name, place };
        served.give(&temporary.file, user)?;
        Ok(temporary)
    }

    /// The file, at its end.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where the file lies, in the agent's view.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where the file lies, as the guest sees it.
    pub(crate) fn guest_path(&self) -> String {
        format!("{FOLDER}/{}", self.name.name)
    }

    /// Lets the file stay until its name is dropped.
    pub(crate) fn into_name(self) -> Name {
        self.name
    }
}

fn create_in(tmp: OwnedFd, name: String) -> io::Result<(File, Name)> {
    // An existing name, a link included, is refused rather than followed.
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let file = openat2(&tmp, name.as_str(), OpenHow::new().flags(flags).mode(MODE).resolve(resolve))?;
    Ok((file.into(), Name { tmp: Some(tmp), name }))
}

impl Name {
    /// Removes what has the name, and resolves when that is done.
    pub(crate) async fn remove(mut self) {
        if let Some(removal) = self.removal() {
            let _removed = spawn_blocking(removal).await;
        }
    }

    fn removal(&mut self) -> Option<impl FnOnce() + use<>> {
        let (tmp, name) = (self.tmp.take()?, std::mem::take(&mut self.name));
        Some(move || {
            // The guest may have removed it itself.
            let _removed = unlinkat(&tmp, name.as_str(), UnlinkatFlags::NoRemoveDir);
        })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let Some(removal) = self.removal() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(removal)),
            Err(_no_runtime) => removal(),
        }
    }
}

/// Twelve hexadecimal digits that nobody can guess.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
