// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Whether machines can be given all their walls on this host, as a child process finds out at the server's start.

use std::{
    ffi::OsStr,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::{Files, Namespaces, enter_user_namespace};
use crate::machines::roles;

/// Making namespaces takes milliseconds; more is a hang.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// Characters of a reason that are shown.
const REASON_CHARS_MAX: usize = 200;

/// Why there are no namespaces for machines, if a child process finds that so. `runner` is this binary.
///
/// # Errors
/// The child did not find out.
pub(crate) async fn missing(runner: &OsStr) -> io::Result<Option<String>> {
    let output = timeout(CHECK_MAX, roles::check_command(runner, roles::CONFINEMENT).output()).await??;
    let reason = || String::from_utf8_lossy(&output.stdout).trim().chars().take(REASON_CHARS_MAX).collect();
    Ok((!output.status.success()).then(reason))
}

/// The life of a child process that tries the walls: prints what is missing, if anything.
pub(crate) fn check() -> ExitCode {
    let no_user_namespace = |fault| io::Error::other(format!("this user may make no user namespace: {fault}"));
    let tried = enter_user_namespace().map_err(no_user_namespace).and_then(|()| {
        unshare(Namespaces::Own.at_birth() | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        Files { folder: PathBuf::from("/"), read_only: Vec::new(), devices: Vec::new() }.may_be_mounted()
    });
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let _ = writeln!(io::stdout(), "{fault}");
            ExitCode::FAILURE
        }
    }
}
