// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! libkrunfw, the library that holds the kernel of libkrun's guests: where it is, and whether it will do.
//!
//! Whether it will do is found out in a child process: a library that was cut short ends the process that looks into
//! it.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::{JoinError, spawn_blocking};

use super::unpacked::{UnpackFault, Unpacked};
use crate::machines::{firmware_binary, roles};

/// Names under which it is found: the one that libkrun asks for, and with the version behind it, as `./taskw firmware`
/// and distributions have it.
const NAME: &str = "libkrunfw.so.5";
/// Where systems keep libraries.
const LIBRARY_FOLDERS: [&str; 6] =
    ["/usr/local/lib64", "/usr/local/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib", "/lib"];
/// libkrunfw cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirmwareFault {
    /// There is none.
    #[error(
        "found no {NAME} next to this program or in the system's library folders; `./taskw firmware` fetches one, and \
         WAGGLE_FIRMWARE names a file or its folder"
    )]
    Missing,
    /// The setting names nothing.
    #[error("found no {NAME} at {}, which WAGGLE_FIRMWARE names", path.display())]
    NotThere { path: PathBuf },
    /// It is something else.
    #[error("failed to use {}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    /// This program's own.
    #[error("failed to use the {NAME} in this program")]
    Unpack { source: Box<UnpackFault> },
    /// The unpacking task panicked.
    #[error("failed to unpack the {NAME} in this program")]
    Task { source: JoinError },
    /// It could not be looked at.
    #[error("failed to check {}", path.display())]
    Check { path: PathBuf, source: io::Error },
}

/// A libkrunfw that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Firmware {
    /// The library.
    pub(crate) path: PathBuf,
    /// Where it is this program's own.
    pub(crate) unpacked: Option<Arc<Unpacked>>,
}

impl Firmware {
    /// Looks for it: where the setting says, in this program, next to it, where systems keep libraries. One that is in
    /// the program is unpacked into `folder`. `runner` is this binary.
    ///
    /// # Errors
    /// [`FirmwareFault`] says what to do.
    pub(crate) async fn find(setting: Option<&Path>, folder: &Path, runner: &OsStr) -> Result<Self, FirmwareFault> {
        let found = match (setting, firmware_binary::embedded()) {
            (Some(path), _) => {
                let path = library(path).ok_or_else(|| FirmwareFault::NotThere { path: path.to_owned() })?;
                Self { path, unpacked: None }
            }
            (None, Some(embedded)) => {
                let folder = folder.to_owned();
                let unpacked = spawn_blocking(move || Unpacked::new(embedded, &folder)).await;
                let unpacked = unpacked.map_err(|source| FirmwareFault::Task { source })?;
                let unpacked = unpacked.map_err(|source| FirmwareFault::Unpack { source: source.into() })?;
                Self { path: unpacked.path().to_owned(), unpacked: Some(Arc::new(unpacked)) }
            }
            (None, None) => {
                let own = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
                let folders = own.into_iter().chain(LIBRARY_FOLDERS.map(PathBuf::from));
                let path = folders.into_iter().find_map(|folder| library(&folder)).ok_or(FirmwareFault::Missing)?;
                Self { path, unpacked: None }
            }
        };
        found.check(runner).await
    }

    /// Checks in a child process that the library loads.
    async fn check(self, runner: &OsStr) -> Result<Self, FirmwareFault> {
        match roles::check(runner, roles::FIRMWARE, Some(self.path.as_os_str())).await {
            Ok(None) => Ok(self),
            Ok(Some(reason)) if reason.is_empty() => {
                let reason = "the process that loaded it died; it may be truncated".to_owned();
                Err(FirmwareFault::Unusable { path: self.path, reason })
            }
            Ok(Some(reason)) => Err(FirmwareFault::Unusable { path: self.path, reason }),
            Err(source) => Err(FirmwareFault::Check { path: self.path, source }),
        }
    }

    /// To be called before each machine: a file that was unpacked by an earlier start may have been changed since.
    ///
    /// # Errors
    /// If it has been, and cannot be replaced.
    pub(crate) async fn ensure(&self) -> Result<(), FirmwareFault> {
        let Some(unpacked) = self.unpacked.clone() else { return Ok(()) };
        let ensured = spawn_blocking(move || unpacked.ensure()).await;
        let ensured = ensured.map_err(|source| FirmwareFault::Task { source })?;
        ensured.map_err(|source| FirmwareFault::Unpack { source: source.into() })
    }
}

/// The library at `path`, or in it if it is a folder: by its plain name, else the one with the highest version behind
/// it.
fn library(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return path.is_file().then(|| path.canonicalize().ok()).flatten();
    }
    let names = fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(NAME.as_bytes()));
    names.filter(named).filter(|path| path.is_file()).max().and_then(|path| path.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_the_newest_library_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libkrunfw.so.4", "libkrun.so.1", "README"] {
            fs::write(folder.path().join(name), b"x").unwrap();
        }
        assert_eq!(library(folder.path()), None);
        for name in ["libkrunfw.so.5.5.0", "libkrunfw.so.5.6.1"] {
            fs::write(folder.path().join(name), b"x").unwrap();
        }
        let found = library(folder.path()).unwrap();
        assert!(found.ends_with("libkrunfw.so.5.6.1"), "{}", found.display());
        assert_eq!(library(&found), Some(found.clone()));
    }
}
