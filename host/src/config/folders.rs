// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The folders of the server, and the rules by which they are chosen.

use std::path::PathBuf;

use super::variables::{Lookup, variable_name};

/// The folders and files that the server uses, as absolute paths.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Folders {
    /// Machines and their disks.
    pub data: PathBuf,
    /// Prepared images.
    pub images: PathBuf,
    /// The operator's kernel for QEMU's guests: a file.
    pub kernel: Option<PathBuf>,
}

/// Returns a folder of the XDG base directory specification. The specification demands that relative paths are ignored.
pub(super) fn xdg(variable: Lookup<'_>, name: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(name).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// Makes a path absolute, since a relative path would mean another folder in runners, which have other working folders.
pub(super) fn absolute(setting: &'static str, path: PathBuf) -> Result<PathBuf, FoldersFault> {
    std::path::absolute(&path).map_err(|source| FoldersFault::Relative { setting, path, source })
}

/// A folder could not be chosen.
#[derive(Debug, thiserror::Error)]
pub enum FoldersFault {
    /// Neither the setting nor a variable for its default is set.
    #[error("failed to choose a folder: set {} or HOME", variable_name(setting))]
    Unset {
        /// The setting, without the prefix of its variable.
        setting: &'static str,
    },
    /// The path is relative, and the working folder is unknown.
    #[error("failed to make {} absolute: {}", variable_name(setting), path.display())]
    Relative {
        /// The setting, without the prefix of its variable.
        setting: &'static str,
        /// The path before the conversion.
        path: PathBuf,
        source: std::io::Error,
    },
}
