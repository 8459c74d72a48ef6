// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the programs that make a machine, once, when the server starts.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A program is not there.
#[derive(Debug, thiserror::Error)]
#[error("found no program {}; {remedy}", program.display())]
pub struct MissingProgram {
    program: PathBuf,
    remedy: &'static str,
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    /// `qemu-system-x86_64`.
    pub(super) qemu: PathBuf,
    /// `vhost-device-vsock`.
    pub(super) vhost_device_vsock: PathBuf,
}

impl Programs {
    /// Looks both up: a path is taken as it is, a bare name is searched in `PATH`.
    ///
    /// # Errors
    /// [`MissingProgram`] says how to get it.
    pub(super) fn find(qemu: &Path, vhost_device_vsock: &Path) -> Result<Self, MissingProgram> {
        Ok(Self { qemu: self::qemu(qemu)?, vhost_device_vsock: self::vhost_device_vsock(vhost_device_vsock)? })
    }
}

/// Looks for QEMU.
pub(super) fn qemu(program: &Path) -> Result<PathBuf, MissingProgram> {
    look_up(program, "the Debian package qemu-system-x86 has it (apt-get install qemu-system-x86)")
}

/// Looks for what gives a QEMU machine its socket.
pub(super) fn vhost_device_vsock(program: &Path) -> Result<PathBuf, MissingProgram> {
    look_up(
        program,
        "`./taskw run` builds it and serves with it; elsewhere `cargo install vhost-device-vsock` does, into a folder \
         that has to be in PATH",
    )
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
    // The runner starts it from another folder.
    candidates.into_iter().find(|path| is_program(path)).and_then(|path| path.canonicalize().ok())
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let shell = Path::new("/bin/sh");
        let fault = Programs::find(Path::new("/nowhere/qemu-system-x86_64"), shell).unwrap_err().to_string();
        assert!(fault.contains("apt-get install qemu-system-x86"), "{fault}");
        let fault = Programs::find(shell, Path::new("no-such-vhost-device-vsock")).unwrap_err().to_string();
        assert!(fault.contains("no-such-vhost-device-vsock; `./taskw run`"), "{fault}");
        assert!(fault.contains("cargo install vhost-device-vsock"), "{fault}");
    }

    #[test]
    fn bare_names_are_searched_and_paths_are_not() {
        assert!(find(Path::new("sh"), OsStr::new("/nowhere:/bin")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(Path::new("./sh"), OsStr::new("/bin")), None);
        assert_eq!(find(Path::new("passwd"), OsStr::new("/etc")), None);
    }
}
