// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens what a path names, in one step and inside the root.
//!
//! `openat2` resolves the whole path at once: there is no check that a swapped link could outrun. Links are followed,
//! as seen from the root; the magic links of `/proc` are not.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat, renameat},
    sys::stat::{Mode, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{guest::HOME, temporary::random_hex};

/// New folders' permissions.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Times that a path is resolved again because something was renamed meanwhile.
const MOVED_TRIES: u32 = 64;

/// Times that making a file's parents is tried again because somebody removed one meanwhile.
const TRIES: u32 = 8;

/// What paths are seen through.
pub(super) struct View {
    /// The root of the file system that calls see.
    root: OwnedFd,
    /// The worker's own `/proc/self/fd`: in the room's `/proc` it is not to be found.
    descriptors: OwnedFd,
}

impl View {
    /// The file system at `root`, with descriptors as [`descriptors`] gave them.
    pub(super) fn new(root: &Path, descriptors: OwnedFd) -> io::Result<Self> {
        Ok(Self { root: open(root, FOLDER, Mode::empty())?, descriptors })
    }
}

/// How folders are opened to look things up from.
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// This process's descriptors as a folder, in the `/proc` that it sees now.
pub(super) fn descriptors() -> io::Result<OwnedFd> {
    Ok(open("/proc/self/fd", FOLDER, Mode::empty())?)
}

/// A path of one call.
pub(super) struct Place<'a> {
    view: &'a View,
    /// What the caller named, relative to the root.
    path: PathBuf,
    /// What the caller named, for messages.
    named: String,
}

impl<'a> Place<'a> {
    /// The place that `path` names: absolute, or relative to the home.
    pub(super) fn new(view: &'a View, path: &str) -> Self {
        let full = Path::new(HOME).join(path);
        let path = full.strip_prefix("/").unwrap_or(&full).to_path_buf();
        let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        Self { view, path, named: full.display().to_string() }
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
        let seen = |fd: &OwnedFd| readlinkat(&self.view.descriptors, fd.as_raw_fd().to_string().as_str());
        let (root, full) = (seen(&self.view.root)?, PathBuf::from(seen(&file)?));
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
        let mut tries = 0;
        loop {
            tries += 1;
            match openat2(&self.view.root, path, how) {
                // The kernel could not rule out that a folder on the way was moved meanwhile.
                Err(Errno::EAGAIN) if tries < MOVED_TRIES => {}
                opened => return Ok(opened?),
            }
        }
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
        let name = OsString::from(format!(".waggle-{}", random_hex()?));
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
