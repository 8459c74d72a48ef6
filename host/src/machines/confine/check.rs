// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks whether this host lets machines have their own namespaces. A child process runs the check when the server
//! starts, because the check changes the process.

use std::{ffi::OsStr, io, path::PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::{Namespaces, RootFiles, enter_user_namespace};
use crate::machines::roles;

/// Returns the reason why machines cannot have their own namespaces, or `None` if they can. `runner` is this binary.
///
/// # Errors
/// The child process could not be run.
pub(crate) async fn missing(runner: &OsStr) -> io::Result<Option<String>> {
    roles::check(runner, roles::CONFINEMENT, None).await
}

/// Tries to create namespaces and to mount inside them. Only for a child process that ends afterwards.
///
/// # Errors
/// The step that failed.
pub(crate) fn check() -> io::Result<()> {
    enter_user_namespace()
        .map_err(|fault| io::Error::other(format!("failed to create a user namespace as this user: {fault}")))?;
    unshare(Namespaces::Own.clone_flags() | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    RootFiles {
        folder: PathBuf::from("/"),
        writable: Vec::new(),
        read_only: Vec::new(),
        devices: Vec::new(),
        own_descriptors: false,
    }
    .check_mounting()
}
