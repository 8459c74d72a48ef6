// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Replaces files of the image.

use std::{fs, io, path::Path};

use super::folder::make_folder;
use crate::step::{StepFault, WithStep};

/// Writes a file, and creates its folder. What is at the path is removed first, so that a link is not followed; a
/// folder that contains something is an error.
pub(super) fn replace(path: &str, text: &str) -> Result<(), StepFault> {
    make_parent(path)?;
    remove(Path::new(path)).and_then(|()| fs::write(path, text)).step(|| format!("write {path}"))
}

/// Removes what is at the path unless it is a regular file or a link to one, so that the path can be opened for
/// appending. A folder that contains something is an error.
pub(super) fn remove_unless_file(path: &str) -> Result<(), StepFault> {
    make_parent(path)?;
    if fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    remove(Path::new(path)).step(|| format!("replace {path}"))
}

fn make_parent(path: &str) -> Result<(), StepFault> {
    path.rsplit_once('/').map_or(Ok(()), |(folder, _name)| make_folder(folder))
}

fn remove(path: &Path) -> io::Result<()> {
    let is_folder = match fs::symlink_metadata(path) {
        Ok(meta) => meta.is_dir(),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
    };
    if is_folder { fs::remove_dir(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_filled_folder_stays_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        fs::write(path("file"), "old").unwrap();
        fs::create_dir(path("empty")).unwrap();
        symlink("none", path("dangling")).unwrap();
        symlink("file", path("link")).unwrap();
        for name in ["file", "empty", "dangling", "none/below/name"] {
            replace(&path(name), "new").unwrap();
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "new", "{name}");
        }
        remove_unless_file(&path("link")).unwrap();
        assert_eq!(fs::read_to_string(path("link")).unwrap(), "new");
        symlink("missing", path("other")).unwrap();
        remove_unless_file(&path("other")).unwrap();
        assert!(fs::symlink_metadata(path("other")).is_err());
        fs::create_dir_all(path("folder/below")).unwrap();
        for fault in [replace(&path("folder"), ""), remove_unless_file(&path("folder"))] {
            assert!(fault.is_err());
            assert!(Path::new(&path("folder/below")).is_dir());
        }
    }
}
