// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens what a path names, in one step and inside the root.
//!
//! `openat2` resolves the whole path at once: there is no check that a swapped link could outrun. Links are followed,
//! as seen from the root; the magic links of `/proc` are not.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlink, renameat},
    sys::stat::{Mode, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
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
        Err(Errno::ENOENT.into())
    }

    /// Where a file of this place's name would be made; only if nothing has the name yet, not even a link.
    pub(super) fn spot_of_new(&self) -> io::Result<Spot> {
        let name = self.path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let folder =
            self.folder(self.path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        match fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(Spot { folder, name }),
            Err(errno) => Err(errno.into()),
            Ok(_) => Err(Errno::EEXIST.into()),
        }
    }

    /// Where the file really lies, behind all links.
    pub(super) fn spot_of_existing(&self) -> io::Result<Spot> {
        let file = self.resolve(&self.path, OFlag::O_PATH, Mode::empty())?;
        let seen = |fd: &OwnedFd| readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str());
        let (root, full) = (seen(&self.root)?, PathBuf::from(seen(&file)?));
        let below = full.strip_prefix(Path::new(&root)).map_err(|_elsewhere| Errno::EXDEV)?;
        let name = below.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let folder =
            self.folder(below.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(Spot { folder, name })
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
                        made.or_else(|errno| if errno == Errno::EEXIST { Ok(()) } else { Err(errno) })?;
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

/// A name in a folder.
pub(super) struct Spot {
    folder: OwnedFd,
    name: OsString,
}

impl Spot {
    /// A new file in the same folder, and its name.
    pub(super) fn temporary(&self) -> io::Result<(File, OsString)> {
        let mut random = [0; 6];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = OsString::from(format!(".waggle-{hex}"));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.folder, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok((file.into(), name))
    }

    /// Gives the file that has the temporary name this spot's own.
    pub(super) fn take_name(&self, temporary: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.folder, temporary, &self.folder, self.name.as_os_str())?)
    }

    /// Removes a temporary file.
    pub(super) fn remove(&self, temporary: &OsStr) {
        // It may have been removed by the user, whose folder this is.
        let _removed = unlinkat(&self.folder, temporary, UnlinkatFlags::NoRemoveDir);
    }
}
