// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the program of the QEMU back end, once when the server starts.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[error("program {} not found; {remedy}", program.display())]
pub struct MissingProgram {
    program: PathBuf,
    remedy: &'static str,
}

/// Finds QEMU. A bare name is looked up in `PATH`; any other path must be that of the program's file.
///
/// # Errors
/// [`MissingProgram`]; its text says how to install the program.
pub(super) fn qemu(program: &Path) -> Result<PathBuf, MissingProgram> {
    look_up(program, "on Debian, install it with apt-get install qemu-system-x86")
}

fn look_up(program: &Path, remedy: &'static str) -> Result<PathBuf, MissingProgram> {
    let search = env::var_os("PATH").unwrap_or_default();
    find(program, &search).ok_or_else(|| MissingProgram { program: program.to_owned(), remedy })
}

fn find(program: &Path, search: &OsStr) -> Option<PathBuf> {
    let is_bare = program.components().count() == 1;
    let candidates: Vec<PathBuf> = if is_bare {
        env::split_paths(search).map(|folder| folder.join(program)).collect()
    } else {
        vec![program.to_owned()]
    };
    // The path must be absolute, because the runner has another working folder.
    candidates.into_iter().find(|path| is_program(path)).and_then(|path| path.canonicalize().ok())
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_for_a_missing_program_says_how_to_install_it() {
        let fault = qemu(Path::new("/nowhere/qemu-system-x86_64")).unwrap_err().to_string();
        assert!(fault.contains("apt-get install qemu-system-x86"), "{fault}");
        let fault = qemu(Path::new("no-such-qemu")).unwrap_err().to_string();
        assert!(fault.contains("no-such-qemu not found"), "{fault}");
    }

    #[test]
    fn only_bare_names_are_searched() {
        assert!(find(Path::new("sh"), OsStr::new("/nowhere:/bin")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(Path::new("./sh"), OsStr::new("/bin")), None);
        assert_eq!(find(Path::new("passwd"), OsStr::new("/etc")), None);
    }
}
