// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The code of commands, and the loaders with which interpreters run the code as if its file were in the working
//! directory.
//!
//! ```text
//!   /run/waggle/python.py, node.cjs      the loaders
//!   /run/waggle/code/waggle_<12 hex>.py  the code of a running call
//! ```
//!
//! No file is created in the working directory: the directory may belong to root, and tools that list it or watch it
//! would find the code. Nothing is set in the environment either, because the programs that the code starts inherit it.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use waggle_protocol::request::{Loader, Script};

use crate::{
    platform::Platform,
    temporary::{TemporaryFile, TemporaryFolder},
};

/// The folder of the loaders, relative to the root.
const LOADERS: &str = "run/waggle";

/// The folder of the code, relative to the root.
const CODE: &str = "run/waggle/code";

/// Permissions of the code's folder, which users can't list. Only root can change it and the files in it, so that a
/// user can't use up the space that the code of later calls needs.
const CODE_MODE: u32 = 0o711;

const PYTHON_LOADER: (&str, &str) = ("python.py", include_str!("loaders/python.py"));
const NODE_LOADER: (&str, &str) = ("node.cjs", include_str!("loaders/node.cjs"));

/// The folder with the code of all calls.
#[derive(Debug)]
pub(crate) struct CodeFolder {
    files: TemporaryFolder,
    /// The folder of the loaders in the agent's view.
    loaders: PathBuf,
}

impl CodeFolder {
    /// Creates the folders and the loaders. Must be called before any user process runs.
    pub(crate) fn create(root: &Path, platform: Arc<Platform>) -> io::Result<Self> {
        let (loaders, code) = (root.join(LOADERS), root.join(CODE));
        DirBuilder::new().recursive(true).mode(0o755).create(&code)?;
        fs::set_permissions(&code, Permissions::from_mode(CODE_MODE))?;
        for (name, text) in [PYTHON_LOADER, NODE_LOADER] {
            let path = loaders.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o444))?;
        }
        Ok(Self { files: TemporaryFolder::open(root, CODE, platform)?, loaders })
    }

    /// Returns the folder for the files of code.
    pub(super) fn files(&self) -> &TemporaryFolder {
        &self.files
    }

    /// Returns the arguments with which an interpreter runs the code in `file`.
    pub(super) fn arguments(&self, script: &Script, file: &TemporaryFile) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        match script.loader {
            None => vec![text(file.path())],
            Some(Loader::Python) => vec![text(&self.loaders.join(PYTHON_LOADER.0)), text(file.path())],
            // Node resolves the name in the working directory, where the loader lets Node find the code.
            Some(Loader::Node) => {
                vec!["--require".to_owned(), text(&self.loaders.join(NODE_LOADER.0)), file.name().to_owned()]
            }
        }
    }
}
