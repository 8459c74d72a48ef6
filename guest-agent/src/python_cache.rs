// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Decides whether Python needs a cache in the home for compiled modules.
//!
//! Docker's official images of Python contain a standard library without compiled modules, which only root can write
//! to. Each start of Python as another user would compile every imported module of the library. Python's variable
//! `PYTHONPYCACHEPREFIX` moves all compiled modules to a cache. Python then ignores those in the image, so an image
//! that contains any keeps them.

use std::{
    fs::{self, ReadDir},
    path::{Path, PathBuf},
};

use crate::sandbox_user::can_write;

/// The variable with the folder of the cache.
pub(crate) const VARIABLE: &str = "PYTHONPYCACHEPREFIX";

/// The folder of the cache in the home.
pub(crate) const FOLDER: &str = ".cache/pycache";

/// Maximum number of installed packages that are searched for compiled modules.
const PACKAGES_MAX: usize = 1024;

/// Returns whether the Python on the search path needs the cache. The folders of the path are paths of the agent.
pub(crate) fn is_needed(search_path: &[PathBuf]) -> bool {
    library_of(search_path).is_some_and(|library| lacks_compiled_modules(&library) && !can_write(&library))
}

/// Returns the folder of the standard library of the Python on the search path.
fn library_of(search_path: &[PathBuf]) -> Option<PathBuf> {
    let python = search_path.iter().map(|folder| folder.join("python3")).find(|python| python.is_file());
    // A virtual environment has a link to the Python whose library it uses.
    let python = python.and_then(|python| fs::canonicalize(python).ok());
    python.as_deref().and_then(Path::parent).and_then(Path::parent).and_then(library)
}

/// Returns the folder of the standard library below the prefix of a Python.
fn library(prefix: &Path) -> Option<PathBuf> {
    let folders = entries(&prefix.join("lib"))?;
    let is_library = |folder: &PathBuf| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("python3.") && folder.join("os.py").is_file()
    };
    folders.map(|entry| entry.path()).find(is_library)
}

fn lacks_compiled_modules(library: &Path) -> bool {
    let Some(packages) = entries(&library.join("site-packages")) else { return !has_compiled_modules(library) };
    let mut folders = packages.take(PACKAGES_MAX).map(|entry| entry.path());
    !has_compiled_modules(library) && !folders.any(|folder| has_compiled_modules(&folder))
}

fn has_compiled_modules(folder: &Path) -> bool {
    let is_compiled = |entry: fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "pyc");
    entries(&folder.join("__pycache__")).is_some_and(|mut cached| cached.any(is_compiled))
}

fn entries(folder: &Path) -> Option<impl Iterator<Item = fs::DirEntry> + use<>> {
    fs::read_dir(folder).ok().map(ReadDir::flatten)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn library_without_compiled_modules_needs_a_cache() {
        let root = tempfile::tempdir().unwrap();
        let (bin, venv) = (root.path().join("usr/local/bin"), root.path().join("opt/venv/bin"));
        let library = root.path().join("usr/local/lib/python3.12");
        for folder in [&bin, &venv, &library.join("site-packages/six"), &library.join("__pycache__")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(library.join("os.py"), "").unwrap();
        fs::write(bin.join("python3.12"), "").unwrap();
        symlink("python3.12", bin.join("python3")).unwrap();
        symlink(bin.join("python3"), venv.join("python3")).unwrap();
        assert_eq!(library_of(&[root.path().join("none"), bin]).as_ref(), Some(&library));
        assert_eq!(library_of(&[venv]).as_ref(), Some(&library));
        assert_eq!(library_of(&[root.path().join("none")]), None);
        assert!(lacks_compiled_modules(&library));

        for compiled in ["__pycache__", "site-packages/six/__pycache__"] {
            let compiled = library.join(compiled);
            fs::create_dir_all(&compiled).unwrap();
            fs::write(compiled.join("os.cpython-312.pyc"), "").unwrap();
            assert!(!lacks_compiled_modules(&library), "{}", compiled.display());
            fs::remove_dir_all(&compiled).unwrap();
        }
    }
}
