// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens the file at a path in one system call, inside the root.
//!
//! `openat2` resolves the whole path at once, so no link can be swapped between a check and the open. Links are
//! followed relative to the root; the magic links of `/proc` are rejected.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat, renameat},
    sys::stat::{Mode, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use waggle_protocol::name;

use crate::{random::random_hex, sandbox_user::from_home};

/// Permissions of new folders.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Maximum number of attempts to resolve a path while its folders are being renamed.
const MOVED_TRIES: u32 = 64;

/// Maximum number of attempts to create the parents of a file while one of them is being removed.
const TRIES: u32 = 8;

/// The folder inside which paths are resolved.
pub(super) struct FileRoot {
    root: OwnedFd,
    /// The worker's own `/proc/self/fd`. The sandbox's `/proc` does not show the worker.
    descriptors: OwnedFd,
}

impl FileRoot {
    /// Opens the file system at `root`, with descriptors from [`descriptors`].
    pub(super) fn open(root: &Path, descriptors: OwnedFd) -> io::Result<Self> {
        Ok(Self { root: open(root, FOLDER, Mode::empty())?, descriptors })
    }
}

/// Flags to open a folder from which paths are resolved.
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens `/proc/self/fd` of this process, in the `/proc` of its current mount namespace.
pub(super) fn descriptors() -> io::Result<OwnedFd> {
    Ok(open("/proc/self/fd", FOLDER, Mode::empty())?)
}

/// The path of a call.
pub(super) struct TargetPath<'a> {
    root: &'a FileRoot,
    /// The path relative to the root.
    path: PathBuf,
    /// The absolute path, for messages.
    named: String,
}

impl<'a> TargetPath<'a> {
    /// Creates the target of a `path` that is absolute, relative to the home, or begins with `~/`. Names that are not
    /// UTF-8 are in the text form of listings. A file whose name only looks like such a text can be meant as well, if
    /// there is no file with the other name; of a new file, the folder decides.
    pub(super) fn new(root: &'a FileRoot, path: &str) -> Self {
        let named = from_home(path).display().to_string();
        let (path, literal) = (below_root(&name::from_text(&named)), below_root(named.as_bytes()));
        let target = Self { root, path, named };
        if target.path == literal {
            return target;
        }
        let exists = |path: &Path| target.exists(path);
        let parent_exists = |path: &Path| path.parent().is_some_and(exists);
        let is_literal = match (exists(&target.path), exists(&literal)) {
            (true, _) => false,
            (false, true) => true,
            (false, false) => !parent_exists(&target.path) && parent_exists(&literal),
        };
        if is_literal { Self { path: literal, ..target } } else { target }
    }

    /// Returns the absolute path, for messages.
    pub(super) fn named(&self) -> &str {
        &self.named
    }

    /// Returns whether the path can only be that of a folder, because it does not end with a name.
    pub(super) fn ends_without_a_name(&self) -> bool {
        let path = self.path.as_os_str().as_bytes();
        matches!(path.rsplit(|byte| *byte == b'/').next(), None | Some(b"" | b"." | b".."))
    }

    /// Opens the file. `O_NONBLOCK` prevents a pipe without a peer from blocking the worker.
    pub(super) fn open(&self, flags: OFlag, mode: Mode) -> io::Result<File> {
        self.resolve(&self.path, flags | OFlag::O_NONBLOCK, mode).map(File::from)
    }

    /// Returns the metadata of the existing file without opening it for reading or writing.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        File::from(self.resolve(&self.path, OFlag::O_PATH, Mode::empty())?).metadata()
    }

    /// Creates the missing parent folders of the file.
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

    /// Returns the folder entry for a new file; an error if the name exists, even as a link.
    pub(super) fn new_entry(&self) -> io::Result<FolderEntry> {
        let entry = self.entry(&self.path)?;
        match fstatat(&entry.folder, entry.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(entry),
            Err(errno) => Err(errno.into()),
            Ok(_) => Err(Errno::EEXIST.into()),
        }
    }

    /// Returns the folder entry of the existing file, after following all links.
    pub(super) fn existing_entry(&self) -> io::Result<FolderEntry> {
        let file = self.resolve(&self.path, OFlag::O_PATH, Mode::empty())?;
        let path_of = |fd: &OwnedFd| readlinkat(&self.root.descriptors, fd.as_raw_fd().to_string().as_str());
        let (root, full) = (path_of(&self.root.root)?, PathBuf::from(path_of(&file)?));
        self.entry(full.strip_prefix(Path::new(&root)).map_err(|_elsewhere| Errno::EXDEV)?)
    }

    fn exists(&self, path: &Path) -> bool {
        self.resolve(path, OFlag::O_PATH, Mode::empty()).is_ok()
    }

    fn entry(&self, path: &Path) -> io::Result<FolderEntry> {
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
        Ok(FolderEntry { folder: self.folder(parent.unwrap_or(Path::new(".")))?, name })
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
            match openat2(&self.root.root, path, how) {
                // A folder in the path may have been moved during the call.
                Err(Errno::EAGAIN) if tries < MOVED_TRIES => {}
                opened => return Ok(opened?),
            }
        }
    }
}

/// Returns an absolute path relative to the root. A slash at the end is kept: only a folder has such a path.
fn below_root(path: &[u8]) -> PathBuf {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    match path.get(start..) {
        None | Some(b"") => PathBuf::from("."),
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
    }
}

/// A name in a folder.
pub(super) struct FolderEntry {
    folder: OwnedFd,
    name: OsString,
}

impl FolderEntry {
    /// Creates a temporary file in the same folder. Returns the file and its name.
    pub(super) fn temporary(&self) -> io::Result<(File, OsString)> {
        let name = OsString::from(format!(".waggle-{}", random_hex()?));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.folder, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok((file.into(), name))
    }

    /// Renames a temporary file to this entry's name.
    pub(super) fn replace_with(&self, temporary: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.folder, temporary, &self.folder, self.name.as_os_str())?)
    }

    /// Removes a temporary file.
    pub(super) fn remove(&self, temporary: &OsStr) {
        // The removal fails if the user has removed the file already.
        let _removed = unlinkat(&self.folder, temporary, UnlinkatFlags::NoRemoveDir);
    }
}
