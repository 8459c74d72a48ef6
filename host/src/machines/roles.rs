// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The roles in which the server starts this binary as a child process. A role is the argument after `runner`.

use std::{
    ffi::OsStr,
    io,
    process::{self, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// The subcommand that makes this binary a runner. The role follows as the next argument.
pub(super) const SUBCOMMAND: &str = "runner";
/// Runs a machine.
pub(super) const MACHINE: &str = "machine";
/// Reports whether KVM runs guests.
pub(super) const PROBE: &str = "probe";
/// Reports whether machines can have their own namespaces.
pub(super) const CONFINEMENT: &str = "confinement";
/// Reports whether a file is a usable libkrunfw. The file's path follows.
pub(super) const FIRMWARE: &str = "firmware";
/// Writes the kernel of a libkrunfw to stdout, as QEMU boots it. The library's path follows. The reason of a failure
/// goes to stderr.
pub(super) const KERNEL: &str = "kernel";

/// Timeout of a check. Creating namespaces or loading 20 MB from a cold disk takes milliseconds.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// Maximum length of the reason of a failed check, in characters.
pub(super) const REASON_CHARS_MAX: usize = 300;

/// Returns a command that starts `runner`, which is this binary, in a role. The environment of the command is empty.
pub(super) fn command(runner: &OsStr, role: &str) -> Command {
    blocking_command(runner, role).into()
}

/// The same command, for a thread that may block.
pub(super) fn blocking_command(runner: &OsStr, role: &str) -> process::Command {
    let mut command = process::Command::new(runner);
    command.args([SUBCOMMAND, role]).env_clear();
    command
}

/// Runs `runner` in a role that only checks something. Returns the reason if the check fails. The reason is empty if
/// the child process died before it printed one.
///
/// # Errors
/// The child process could not be started, or did not end within [`CHECK_MAX`].
pub(super) async fn check(runner: &OsStr, role: &str, argument: Option<&OsStr>) -> io::Result<Option<String>> {
    let mut command = command(runner, role);
    command.args(argument).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(CHECK_MAX, command.output()).await??;
    let reason = || String::from_utf8_lossy(&output.stdout).trim().chars().take(REASON_CHARS_MAX).collect();
    Ok((!output.status.success()).then(reason))
}
