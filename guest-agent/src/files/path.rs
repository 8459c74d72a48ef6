// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens what a path names, in one step and inside the root.
//!
//! `openat2` resolves the whole path at once: there is no check that a swapped link could outrun. Links are followed,
//! as seen from the root; the magic links of `/proc` are not.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{Mode, mkdirat},
};
use waggle_protocol::Fault;

use crate::{fault::fault_of, guest::HOME};

/// New folders' permissions.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Times that making a file's parents is tried again because somebody removed one meanwhile.
const TRIES: u32 = 8;

/// Paths of one call, below the root.
pub(super) struct Place {
    root: OwnedFd,
    /// What the caller named, relative to the root.
    path: PathBuf,
    /// What the caller named, for messages.
    named: String,
}

impl Place {
    /// The place that `path` (absolute, or relative to the home) names in the file system at `root`.
    pub(super) fn new(root: &Path, path: &str) -> Result<Self, Fault> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(root, flags, Mode::empty())
            .map_err(|errno| fault_of(&errno.into(), "failed to open the root of the file system"))?;
        let full = Path::new(HOME).join(path);
        let path = full.strip_prefix("/").unwrap_or(&full).to_path_buf();
        let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        Ok(Self { root, path, named: full.display().to_string() })
    }

    /// What the caller named, as an absolute path.
    pub(super) fn named(&self) -> &str {
        &self.named
    }

    /// Opens it. `O_NONBLOCK` keeps a pipe without a writer from holding the worker.
    pub(super) fn open(&self, flags: OFlag, mode: Mode) -> io::Result<File> {
        self.resolve(&self.path, flags | OFlag::O_NONBLOCK, mode).map(File::from)
    }

    /// Makes the folders that lead to it.
    pub(super) fn make_parents(&self) -> io::Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        for _ in 0..TRIES {
            match self.make_folder(parent) {
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        Err(nix::errno::Errno::ENOENT.into())
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut above = PathBuf::from(".");
        for component in folder.components() {
            let here = above.join(component);
            if let Component::Normal(name) = component {
                match self.folder(&here) {
                    Ok(_exists) => {}
                    Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
                        let made = mkdirat(self.folder(&above)?, name, FOLDER_MODE);
                        made.or_else(|errno| if errno == nix::errno::Errno::EEXIST { Ok(()) } else { Err(errno) })?;
                    }
                    Err(fault) => return Err(fault),
                }
            }
            above = here;
        }
        self.folder(&above).map(drop)
    }

    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
    }

    fn resolve(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        Ok(openat2(&self.root, path, how)?)
    }
}
