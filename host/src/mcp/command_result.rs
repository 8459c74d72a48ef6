// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The result of a command. `execute` and `install_packages` return it, and the errors of stopped commands include it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::{
    command::{EndCause, Executed},
    output::{LostRange, Output},
};

/// The end of a command and its output. The keys of unusual events are absent if the events did not happen.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CommandResult<'a> {
    /// True if the call was cancelled; everything that the call had started was killed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    cancelled: bool,
    /// The duration in milliseconds from start to exit, measured in the environment.
    duration_ms: u64,
    /// 0 for success; 128 + n if signal n ended the command.
    exit_code: i32,
    /// A note on connections that the network policy refused while the command ran; absent if it refused none.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// True if the command exceeded its memory limit and the kernel killed one of its processes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    out_of_memory: bool,
    /// The number of the signal that ended the command, such as 9 for KILL, 11 for SEGV or 15 for TERM; absent if no
    /// signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    stderr: &'a str,
    /// The path of the file in the environment that contains a long stderr; read the file with read_file and offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file: Option<&'a str>,
    /// The size of stderr_file in bytes; absent if the file contains all of stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file_bytes: Option<u64>,
    /// The range of bytes that was left out of a long stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_lost: Option<Lost>,
    stdout: &'a str,
    /// The path of the file in the environment that contains a long stdout; read the file with read_file and offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_file: Option<&'a str>,
    /// The size of stdout_file in bytes; absent if the file contains all of stdout.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_file_bytes: Option<u64>,
    /// The range of bytes that was left out of a long stdout.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_lost: Option<Lost>,
    /// True if the command reached its timeout; everything that the command had started was killed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    timed_out: bool,
}

/// A range of bytes, up to but not including `to`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Lost {
    from: u64,
    to: u64,
}

impl<'a> CommandResult<'a> {
    pub(super) fn of(executed: &'a Executed) -> Self {
        let Executed { stdout, stderr, hint, .. } = executed;
        Self {
            cancelled: executed.cause == EndCause::Cancelled,
            duration_ms: u64::try_from(executed.duration.as_millis()).unwrap_or(u64::MAX),
            exit_code: executed.exit_code,
            hint: hint.as_deref(),
            out_of_memory: executed.cause == EndCause::OutOfMemory,
            signal: executed.signal,
            stderr: &stderr.text,
            stderr_file: stderr.file.as_ref().map(|file| file.path.as_str()),
            stderr_file_bytes: truncated_size(stderr),
            stderr_lost: stderr.lost.map(lost),
            stdout: &stdout.text,
            stdout_file: stdout.file.as_ref().map(|file| file.path.as_str()),
            stdout_file_bytes: truncated_size(stdout),
            stdout_lost: stdout.lost.map(lost),
            timed_out: executed.cause == EndCause::TimedOut,
        }
    }
}

/// Returns the size of an output's file, if the file does not contain the whole output.
fn truncated_size(output: &Output) -> Option<u64> {
    output.file.as_ref().filter(|file| !file.complete).map(|file| file.bytes)
}

fn lost(LostRange { from, to }: LostRange) -> Lost {
    Lost { from, to }
}
