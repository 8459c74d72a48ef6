// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Commands in a guest, and their results.

use std::time::Duration;

use super::{guest_path::GuestPath, output::Output};

/// A command to run in the guest. `argv` is executed directly, without a shell.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program and its arguments. The program is an absolute path, or a name in the guest's search path.
    pub argv: Vec<String>,
    /// Code that the agent writes to a temporary file. The agent appends the arguments that run the file.
    pub script: Option<Script>,
    pub stdin: Vec<u8>,
    /// Environment variables in addition to those that the agent sets for every command.
    pub env: Vec<(String, String)>,
    /// The working directory; by default the image's working directory, or else the sandbox user's home.
    pub working_directory: Option<GuestPath>,
    pub user: User,
    /// The time after which the agent kills all processes of the command.
    pub timeout: Duration,
    pub limits: CommandLimits,
    /// Maximum bytes of each output in the result; the rest is left out of the result.
    pub output_bytes_max: usize,
    /// Size in bytes above which the agent stores an output in a file in the guest.
    pub keep_output_above_bytes: u64,
}

/// Resource limits of a command and of all processes that it starts. The machine's own limits apply as well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CommandLimits {
    /// Maximum memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Maximum number of processes and threads.
    pub pids: Option<u32>,
    /// Maximum number of open files of one process.
    pub open_files: Option<u32>,
}

/// Code to run from a temporary file.
#[derive(Clone, Debug)]
pub struct Script {
    /// The file's extension without the dot: `py`, `js`, `sh`.
    pub extension: &'static str,
    pub code: Vec<u8>,
    /// The agent's program that loads the code. Without a loader, the interpreter gets the path of the file.
    pub loader: Option<Loader>,
}

/// The agent's programs that make an interpreter run code as if its file were in the working directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loader {
    Python,
    Node,
}

/// The user that runs a command in the guest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum User {
    /// The user `sandbox`, with user and group id 1000.
    #[default]
    Sandbox,
    /// The guest's root, for package managers that need it.
    Root,
}

/// One of the two outputs of a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// The result of a command that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executed {
    /// The exit code; 128 + n if signal n ended the command.
    pub exit_code: i32,
    /// The signal that ended the command, if any.
    pub signal: Option<i32>,
    pub cause: EndCause,
    /// The time from spawn to exit, measured by the agent.
    pub duration: Duration,
    pub stdout: Output,
    pub stderr: Output,
    /// A note about connections and system calls that were refused during the command. Programs often report such a
    /// refusal as an unrelated error.
    pub hint: Option<String>,
    /// The file in the guest that receives the further output of processes that the command left running.
    pub background_file: Option<GuestPath>,
    /// The system calls of the command that the guest's filter refused.
    pub refused: Vec<RefusedCall>,
}

/// A system call that the guest's filter refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RefusedCall {
    /// The name of the system call, such as `unshare`.
    pub name: String,
    /// The number of refusals.
    pub count: u32,
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndCause {
    /// The command ended by itself.
    Exited,
    /// The command reached its timeout, and the agent killed it.
    TimedOut,
    /// The caller cancelled the command, and the agent killed it.
    Cancelled,
    /// The command exceeded its memory limit, and the guest's kernel killed one of its processes.
    OutOfMemory,
}
