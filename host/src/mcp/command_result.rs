// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The result of a command. `execute` and `install_packages` return it, and the errors of stopped commands include it.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    failure::Outcome,
    results::{EVENT_BYTES_MAX, shrunk, written_bytes},
    resumed_note::ResumedNote,
};
use crate::domain::{
    command::{EndCause, Executed},
    guest_path::GuestPath,
    output::{LostRange, Output, OutputFile},
};

/// The end of a command and its output. The keys of unusual events are absent if the events did not happen.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CommandResult<'a> {
    /// The path of the file in the environment that receives the further output of processes that the command left
    /// running; its end is kept, at least 512 KiB. Absent if no process has stdout or stderr open.
    #[serde(skip_serializing_if = "Option::is_none")]
    background_file: Option<&'a str>,
    /// True if the call was cancelled; everything that the call had started was killed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    cancelled: bool,
    /// The duration in milliseconds from start to exit, measured in the environment.
    duration_ms: u64,
    /// 0 for success; 128 + n if signal n ended the command.
    exit_code: i32,
    /// A note on what the command's own output may not tell: what was refused, what still runs, why the command was
    /// stopped; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<&'a str>,
    #[serde(flatten)]
    pub(super) resumed: ResumedNote,
    /// True if the command exceeded its memory limit and the kernel killed one of its processes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    out_of_memory: bool,
    /// The number of the signal that ended the command, such as 9 for KILL, 11 for SEGV or 15 for TERM; absent if no
    /// signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    pub(super) stderr: String,
    /// The path of the file in the environment that contains a long stderr; read the file with read_file and offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file: Option<&'a str>,
    /// The size of stderr_file in bytes; absent if the file contains all of stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file_bytes: Option<u64>,
    /// The range of bytes that was left out of a long stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_lost: Option<Lost>,
    pub(super) stdout: String,
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
    /// Writes the result of a command with as much of the outputs as fits into one event.
    pub(super) fn write(executed: &'a Executed, write: impl Fn(Self) -> Outcome) -> Outcome {
        let mut output_bytes_max = executed.stdout.kept_bytes().max(executed.stderr.kept_bytes());
        loop {
            let result = write(Self::of(executed, output_bytes_max))?;
            let bytes = written_bytes(&result);
            if bytes <= EVENT_BYTES_MAX || output_bytes_max == 0 {
                return Ok(result);
            }
            output_bytes_max = shrunk(output_bytes_max, bytes);
        }
    }

    fn of(executed: &'a Executed, output_bytes_max: usize) -> Self {
        let [stdout, stderr] = [&executed.stdout, &executed.stderr].map(|output| output.excerpt(output_bytes_max));
        // A file with an output that is in the result as a whole is of no use.
        let file_of = |output: &'a Output, lost: Option<LostRange>| output.file.as_ref().filter(|_| lost.is_some());
        let stdout_file = file_of(&executed.stdout, stdout.lost);
        let stderr_file = file_of(&executed.stderr, stderr.lost);
        Self {
            background_file: executed.background_file.as_ref().map(GuestPath::as_str),
            cancelled: executed.cause == EndCause::Cancelled,
            duration_ms: u64::try_from(executed.duration.as_millis()).unwrap_or(u64::MAX),
            exit_code: executed.exit_code,
            hint: executed.hint.as_deref(),
            resumed: ResumedNote::default(),
            out_of_memory: executed.cause == EndCause::OutOfMemory,
            signal: executed.signal,
            stderr: stderr.text,
            stderr_file: stderr_file.map(|file| file.path.as_str()),
            stderr_file_bytes: stderr_file.and_then(truncated_size),
            stderr_lost: stderr.lost.map(lost),
            stdout: stdout.text,
            stdout_file: stdout_file.map(|file| file.path.as_str()),
            stdout_file_bytes: stdout_file.and_then(truncated_size),
            stdout_lost: stdout.lost.map(lost),
            timed_out: executed.cause == EndCause::TimedOut,
        }
    }
}

/// Returns the size of an output's file, if the file does not contain the whole output.
fn truncated_size(file: &OutputFile) -> Option<u64> {
    (!file.complete).then_some(file.bytes)
}

fn lost(LostRange { from, to }: LostRange) -> Lost {
    Lost { from, to }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        domain::{guest_path::GuestPath, output::OUTPUT_BYTES_MAX},
        mcp::results,
    };

    fn executed(stdout: &[u8], stderr: &[u8]) -> Executed {
        let output = |bytes: &[u8]| {
            let mut output = Output::with_limit(OUTPUT_BYTES_MAX);
            output.push(bytes);
            let path = GuestPath::parse("/tmp/out").unwrap();
            output.with_file(Some(OutputFile { path, bytes: bytes.len() as u64, complete: true }))
        };
        Executed {
            exit_code: 0,
            signal: None,
            cause: EndCause::Exited,
            duration: Duration::from_millis(5),
            stdout: output(stdout),
            stderr: output(stderr),
            hint: None,
            background_file: None,
            refused: Vec::new(),
        }
    }

    #[test]
    fn outputs_are_cut_to_one_event_however_they_are_escaped() {
        for piece in ["x", "\"\n", "\u{1}", "\u{fffd}", "é"] {
            let output = piece.repeat(OUTPUT_BYTES_MAX / piece.len());
            let executed = executed(output.as_bytes(), output.as_bytes());
            let result = CommandResult::write(&executed, |result| results::object(&result)).unwrap();
            let bytes = written_bytes(&result);
            assert!((EVENT_BYTES_MAX * 3 / 4..=EVENT_BYTES_MAX).contains(&bytes), "{piece:?}: {bytes}");
            let structured = result.structured_content.unwrap();
            assert!(structured["stdout_lost"]["from"].is_number() && structured["stderr_file"] == "/tmp/out");
        }
    }

    #[test]
    fn short_output_does_not_shrink_a_long_one_and_names_no_file() {
        let executed = executed(&[b'x'; 400_000], b"short");
        let result =
            CommandResult::write(&executed, |result| results::object(&result)).unwrap().structured_content.unwrap();
        assert_eq!((result["stdout"].as_str().unwrap().len(), &result["stderr"]), (400_000, &"short".into()));
        assert!(result.get("stdout_file").is_none() && result.get("stdout_lost").is_none());
    }
}
