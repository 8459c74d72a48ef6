// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds and checks libkrunfw, the library that contains the guests' kernel.
//!
//! The check runs in a child process, because a truncated library crashes the process that loads it.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::GzDecoder;
use tokio::task::{JoinError, spawn_blocking};

use crate::machines::{
    firmware_binary::{self, EmbeddedFirmware},
    made_file::{Content, Family, MadeFile, MakeFault, Measure},
    roles,
};

/// The file name that libkrun looks up. Files from `./taskw firmware` and from distributions append the full version.
pub(super) const NAME: &str = "libkrunfw.so.5";
/// The reason if a child process died while it read the library.
pub(crate) const DIED: &str = "the process that loaded the library died, so the file may be truncated; fetch it again, \
                               for example with `./taskw firmware`";
/// Folders in which distributions keep libraries.
const LIBRARY_FOLDERS: [&str; 6] =
    ["/usr/local/lib64", "/usr/local/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib", "/lib"];

#[derive(Debug, thiserror::Error)]
pub(crate) enum FirmwareFault {
    #[error(
        "{NAME} not found next to this program or in the system's library folders; fetch it with `./taskw firmware`, \
         or set WAGGLE_FIRMWARE to the file or its folder"
    )]
    Missing,
    /// The configured path has no libkrunfw.
    #[error("{NAME} not found at {}, which WAGGLE_FIRMWARE names", path.display())]
    NotThere { path: PathBuf },
    #[error("failed to use {}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("failed to use the {NAME} embedded in this program")]
    Unpack { source: Box<MakeFault> },
    /// The unpacking task panicked.
    #[error("failed to unpack the {NAME} embedded in this program")]
    Task { source: JoinError },
    /// The check could not be run.
    #[error("failed to check {}", path.display())]
    Check { path: PathBuf, source: io::Error },
}

/// A usable libkrunfw.
#[derive(Clone, Debug)]
pub(crate) struct Firmware {
    pub(crate) path: PathBuf,
    /// Set if the library was unpacked from this program.
    pub(crate) unpacked: Option<Arc<MadeFile>>,
}

impl Firmware {
    /// Finds libkrunfw and checks it. A configured path has precedence, then a library embedded in this program, which
    /// is unpacked into `folder`. Otherwise looks next to this program and in the system's library folders. `runner` is
    /// this binary.
    ///
    /// # Errors
    /// [`FirmwareFault`]; its text says how to get the library.
    pub(crate) async fn find(setting: Option<&Path>, folder: &Path, runner: &OsStr) -> Result<Self, FirmwareFault> {
        let found = match (setting, firmware_binary::embedded()) {
            (Some(path), _) => {
                let path = library(path).ok_or_else(|| FirmwareFault::NotThere { path: path.to_owned() })?;
                Self { path, unpacked: None }
            }
            (None, Some(embedded)) => {
                let folder = folder.to_owned();
                let unpacked = spawn_blocking(move || unpack(embedded, &folder)).await;
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

    /// Checks in a child process that the library loads and contains a whole kernel.
    async fn check(self, runner: &OsStr) -> Result<Self, FirmwareFault> {
        match roles::check(runner, roles::FIRMWARE, Some(self.path.as_os_str())).await {
            Ok(None) => Ok(self),
            Ok(Some(reason)) if reason.is_empty() => {
                Err(FirmwareFault::Unusable { path: self.path, reason: DIED.to_owned() })
            }
            Ok(Some(reason)) => Err(FirmwareFault::Unusable { path: self.path, reason }),
            Err(source) => Err(FirmwareFault::Check { path: self.path, source }),
        }
    }

    /// Verifies an unpacked file again, and replaces a changed file. Must be called before each start of a machine.
    ///
    /// # Errors
    /// The changed file cannot be replaced.
    pub(crate) async fn ensure(&self) -> Result<(), FirmwareFault> {
        let Some(unpacked) = self.unpacked.clone() else { return Ok(()) };
        let ensured = spawn_blocking(move || unpacked.ensure()).await;
        let ensured = ensured.map_err(|source| FirmwareFault::Task { source })?;
        ensured.map_err(|source| FirmwareFault::Unpack { source: source.into() })
    }
}

impl Content for EmbeddedFirmware {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(GzDecoder::new(self.compressed)))
    }

    fn damage(&self) -> String {
        "the firmware embedded in this program is damaged; reinstall the program".to_owned()
    }
}

/// Unpacks the embedded library into the folder.
pub(crate) fn unpack(embedded: EmbeddedFirmware, folder: &Path) -> Result<MadeFile, MakeFault> {
    let measure = Measure { bytes: embedded.bytes, sha256: embedded.sha256.to_owned() };
    MadeFile::new(Family("libkrunfw"), embedded.name, Box::new(embedded), measure, folder)
}

/// Returns `path` if it is a file. If it is a folder, returns its library whose name sorts last, usually the newest.
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
    fn newest_library_of_a_folder_is_used() {
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
