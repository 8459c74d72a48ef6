// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that the agent creates in the guest for code, stdin and output: code in a folder of its own, all others in
//! `/tmp`, except for a small stdin when the disk is full. Their names have the form `waggle_<12 hex>.<extension>`.
//!
//! The agent is root, and every user can write to `/tmp`. The agent therefore opens the folder before any user process
//! runs, uses unguessable new names, and follows no links. User processes can cause operations on the folder to block,
//! so files are created and removed outside the runtime's thread.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, OpenHow, ResolveFlag, fallocate, open, openat2},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use tokio::{runtime::Handle, task::spawn_blocking};
use waggle_protocol::request::User;

use crate::{platform::Platform, random::random_hex};

/// Permissions of the files: only the owner can read them, because code and output may contain secrets.
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

const EXTENSION_BYTES_MAX: usize = 8;

/// A folder for such files, opened before any user process runs. If a user process later replaces the folder, the agent
/// still uses the original one.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    folder: OwnedFd,
    /// The folder's path in the agent's view.
    path: PathBuf,
    /// The folder's path in the guest.
    guest_path: String,
    platform: Arc<Platform>,
}

impl TemporaryFolder {
    /// Opens the folder at a path relative to the root.
    pub(crate) fn open(root: &Path, folder: &str, platform: Arc<Platform>) -> io::Result<Self> {
        let (path, guest_path) = (root.join(folder), format!("/{folder}"));
        let folder = open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { folder, path, guest_path, platform })
    }

    /// Creates an empty file that belongs to `user`.
    pub(crate) async fn create(&self, extension: &str, user: User) -> io::Result<TemporaryFile> {
        let file = self.create_own(extension).await?;
        self.platform.set_owner(&file.file, user)?;
        Ok(file)
    }

    /// Creates an empty file that `user` can read, but not change.
    pub(crate) async fn create_readable(&self, extension: &str, user: User) -> io::Result<TemporaryFile> {
        let file = self.create_own(extension).await?;
        self.platform.let_read(&file.file, user)?;
        Ok(file)
    }

    /// Creates an empty file that belongs to `user`, and reserves the space of `bytes` bytes for it.
    pub(crate) async fn create_with_space(&self, extension: &str, user: User, bytes: u64) -> io::Result<TemporaryFile> {
        let file = self.create(extension, user).await?;
        let reserving = file.file.try_clone()?;
        spawn_blocking(move || reserve(&reserving, bytes)).await.map_err(io::Error::other)??;
        Ok(file)
    }

    async fn create_own(&self, extension: &str) -> io::Result<TemporaryFile> {
        if extension.is_empty()
            || extension.len() > EXTENSION_BYTES_MAX
            || !extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            let text = format!("invalid file extension: must be 1 to {EXTENSION_BYTES_MAX} letters or digits");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let name = format!("waggle_{}.{extension}", random_hex()?);
        let (path, guest_path) = (self.path.join(&name), format!("{}/{name}", self.guest_path));
        let folder = self.folder.try_clone()?;
        let (file, name) = spawn_blocking(move || create_in(folder, name)).await.map_err(io::Error::other)??;
        Ok(TemporaryFile { file, name, path, guest_path })
    }
}

/// A file in the folder, removed on drop.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    file: File,
    name: Name,
    /// The file's path in the agent's view.
    path: PathBuf,
    guest_path: String,
}

/// A name in the folder. Dropping it removes the file of that name.
#[derive(Debug)]
pub(crate) struct Name {
    folder: Option<OwnedFd>,
    name: String,
}

impl TemporaryFile {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Opens the file again, only for reading.
    pub(crate) fn open_read_only(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns the file's path in the agent's view.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's path in the guest.
    pub(crate) fn guest_path(&self) -> String {
        self.guest_path.clone()
    }

    /// Returns the file's name in the folder.
    pub(crate) fn name(&self) -> &str {
        &self.name.name
    }

    /// Closes the file. The file is removed when the returned name is dropped.
    pub(crate) fn into_name(self) -> Name {
        self.name
    }
}

fn create_in(folder: OwnedFd, name: String) -> io::Result<(File, Name)> {
    // Fails if the name exists, even as a link.
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let file = openat2(&folder, name.as_str(), OpenHow::new().flags(flags).mode(MODE).resolve(resolve))?;
    Ok((file.into(), Name { folder: Some(folder), name }))
}

fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes) {
        // Not all file systems can reserve space.
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Name {
    /// Removes the file, and resolves when the file is removed.
    pub(crate) async fn remove(mut self) {
        if let Some(removal) = self.removal() {
            let _removed = spawn_blocking(removal).await;
        }
    }

    fn removal(&mut self) -> Option<impl FnOnce() + use<>> {
        let (folder, name) = (self.folder.take()?, std::mem::take(&mut self.name));
        Some(move || {
            // The guest may have removed the file already.
            let _removed = unlinkat(&folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
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
