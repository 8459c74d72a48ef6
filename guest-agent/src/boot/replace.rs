// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Replaces files of the image.

use std::{fs, io, path::Path};

use crate::step::{StepFault, WithStep};

/// Writes a file, and creates its folder. An existing file or link is removed first, so that a link is not followed.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), StepFault> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::remove_file(path) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
            Ok(()) | Err(_) => {}
        }
        fs::write(path, text)
    };
    write().step(|| format!("write {}", path.display()))
}
