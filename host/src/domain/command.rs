// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Commands in a guest, and their results.

use std::time::Duration;

use super::{guest_path::GuestPath, output::Output};

/// A command to run in the guest. No shell is involved: `argv` is executed as it is.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Program (absolute, or looked up in the guest's search path) and arguments.
    pub argv: Vec<String>,
    /// Written to a temporary file whose path becomes the last argument.
    pub script: Option<Script>,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// Variables added to those that the agent gives every command.
    pub env: Vec<(String, String)>,
    /// Its working directory; by default the image's, else the home.
    pub working_directory: Option<GuestPath>,
    /// The user that runs it.
    pub user: User,
    /// After this time the agent kills everything that the call started.
    pub timeout: Duration,
    /// Resource limits.
    pub limits: CommandLimits,
    /// An output longer than this, in bytes, is kept in a file in the guest.
    pub keep_output_above_bytes: u64,
}

/// Resource limits of a command and everything it starts. The machine's own limits hold as well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CommandLimits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Open files of one process.
    pub open_files: Option<u32>,
}

/// Code to run from a temporary file.
#[derive(Clone, Debug)]
pub struct Script {
    /// Without the dot: `py`, `js`, `sh`.
    pub extension: &'static str,
    /// The file's content.
    pub code: Vec<u8>,
}

/// The user that runs a command in the guest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum User {
    /// `sandbox`, 1000:1000.
    #[default]
    Sandbox,
    /// The guest's root, for package managers that need it.
    Root,
}

/// One of the two outputs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The result of a command that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executed {
    /// Its exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The cause of the end.
    pub cause: EndCause,
    /// From spawn to exit, as the agent measured it.
    pub duration: Duration,
    /// Its standard output.
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
    /// A note that the network policy refused something meanwhile, which programs report as all kinds of errors.
    pub hint: Option<String>,
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndCause {
    /// By itself.
    Exited,
    /// It reached its timeout and the agent killed it.
    TimedOut,
    /// The caller cancelled it and the agent killed it.
    Cancelled,
    /// It exceeded its memory limit and the guest's kernel killed it.
    OutOfMemory,
}
