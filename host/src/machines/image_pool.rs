// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The images of saved machines. A machine keeps its image, because its disk is of use only with exactly that image.
//!
//! The file in a machine's folder is a hard link to the image in the cache. Where the cache is on another file system
//! or mount, it is a link to a copy in the pool, which all machines of the image share. A copy without other links is
//! removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use waggle_shared::draft::DraftFolder;

use super::{disks, machine_image::MachineImage};

/// Name of the pool in the data folder.
pub(super) const FOLDER: &str = "saved-images";

/// Makes the image of a machine appear at `path`.
///
/// # Errors
/// The kernel's error.
pub(super) fn put(image: &MachineImage, pool: &Path, path: &Path) -> io::Result<()> {
    if fs::hard_link(&image.erofs, path).is_ok() {
        return Ok(());
    }
    let folder = DraftFolder::open(pool.to_owned()).map_err(io::Error::other)?;
    let copy = pool.join(image.cached.file_name().unwrap_or_default());
    remove_unused(pool, &copy);
    match fs::hard_link(&copy, path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
        linked => return linked,
    }
    let draft = folder.draft().map_err(io::Error::other)?;
    disks::copy_data(&File::open(&image.erofs)?, draft.file())?;
    draft.publish(&copy).map_err(io::Error::other)?;
    fs::hard_link(&copy, path)
}

/// Removes copies that no machine has, except `wanted`.
fn remove_unused(pool: &Path, wanted: &Path) {
    let Ok(entries) = fs::read_dir(pool) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_unused = path.metadata().is_ok_and(|found| found.nlink() == 1);
        let is_copy = path.extension().is_some_and(|extension| extension == "erofs");
        if is_unused && is_copy && path != wanted {
            let _ = fs::remove_file(path);
        }
    }
}
