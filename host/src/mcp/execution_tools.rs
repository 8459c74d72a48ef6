// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `execute`, `install_packages`.

use std::collections::BTreeMap;

use rmcp::model::{CallToolResult, JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Caller, Inner,
    arguments::{self, RuntimeArgument},
    environment_tools::parse_id,
    errors::Failure,
    results,
};
use crate::{
    domain::{
        guest_path::GuestPath,
        output::LostRange,
        ports::{EndCause, OutputFile, OutputStream},
        variables::Variables,
    },
    service::{
        execution::{Code, Executed, Watcher},
        fault::{ArgumentFault, Fault},
    },
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecuteArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// The program text, at most 512,000 bytes. It is run from a file.
    code: String,
    /// The language of the code; the environment's runtime if left out.
    language: Option<RuntimeArgument>,
    /// The code and everything that it started are killed after so many seconds; 30 if left out and at most 300,
    /// unless the server's operator says otherwise.
    timeout_seconds: Option<f64>,
    /// What the code reads from its standard input; at most 10 MiB. Nothing if left out.
    stdin: Option<String>,
    /// The folder that the code starts in, absolute or relative to /home/sandbox. If left out, it is the image's own
    /// working directory where it has one, else /home/sandbox.
    working_directory: Option<String>,
    /// Environment variables for this call, by name; at most 256 of 64 KiB together. PATH cannot be set.
    environment: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InstallArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Names separated by white space, versions allowed: `requests numpy==2.1`, `lodash@4 @types/node`. No options.
    packages: String,
}

/// How a command ended. Keys that say something out of the ordinary are absent otherwise.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CommandResult<'a> {
    /// True if the call was cancelled, upon which everything that it had started was killed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    cancelled: bool,
    /// From start to exit, as measured in the environment.
    duration_ms: u64,
    /// 0 for success; 128 + n if signal n ended it.
    exit_code: i32,
    /// That the network policy refused something while it ran, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// True if it needed more memory than it may have, upon which the kernel killed some of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    out_of_memory: bool,
    /// The number of the signal that ended it, if one did: 9 for KILL, 11 for SEGV, 15 for TERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    stderr: &'a str,
    /// The file in the environment that a long stderr was kept in, if any: read on there with read_file and offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file: Option<&'a str>,
    /// How many bytes of stderr that file has, where it could not hold all.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_file_bytes: Option<u64>,
    /// Bytes of stderr that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_lost: Option<Lost>,
    stdout: &'a str,
    /// The file in the environment that a long stdout was kept in, if any: read on there with read_file and offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_file: Option<&'a str>,
    /// How many bytes of stdout that file has, where it could not hold all.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_file_bytes: Option<u64>,
    /// Bytes of stdout that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_lost: Option<Lost>,
    /// True if its time-out passed, upon which everything that it had started was killed.
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
        let Executed { ended, stdout, stderr, hint } = executed;
        Self {
            cancelled: ended.cause == EndCause::Cancelled,
            duration_ms: u64::try_from(ended.duration.as_millis()).unwrap_or(u64::MAX),
            exit_code: ended.exit_code,
            hint: hint.as_deref(),
            out_of_memory: ended.cause == EndCause::OutOfMemory,
            signal: ended.signal,
            stderr: &stderr.text,
            stderr_file: ended.stderr_file.as_ref().map(|file| file.path.as_str()),
            stderr_file_bytes: shortened(ended.stderr_file.as_ref()),
            stderr_lost: stderr.lost.map(Lost::of),
            stdout: &stdout.text,
            stdout_file: ended.stdout_file.as_ref().map(|file| file.path.as_str()),
            stdout_file_bytes: shortened(ended.stdout_file.as_ref()),
            stdout_lost: stdout.lost.map(Lost::of),
            timed_out: ended.cause == EndCause::TimedOut,
        }
    }
}

/// What a file has that could not hold its whole output.
fn shortened(file: Option<&OutputFile>) -> Option<u64> {
    file.filter(|file| !file.complete).map(|file| file.bytes)
}

impl Lost {
    fn of(range: LostRange) -> Self {
        Self { from: range.from, to: range.to }
    }
}

pub(super) fn execute() -> Tool {
    let tool = results::tool::<ExecuteArguments>(
        "execute",
        "Execute code",
        "Run a program in an environment and wait for it to end. Returns stdout, stderr and the exit code; a non-zero \
         exit code is a result, not an error. Each call is a process of its own, which starts in /home/sandbox unless \
         the image or working_directory says otherwise: files stay, variables do not. Only what is printed comes back, so print what you want to see. Of a very long output (above \
         512 KiB) the middle is left out; stdout_file and stderr_file then name the files that have it, up to 64 MiB, for \
         read_file with offset and limit; the environment keeps the last 16 of them. At the time-out everything that the call started is killed. For what takes longer, or has to go on \
         (a server), start it in the background and return: `nohup ./server >server.log 2>&1 &` in a shell call lives \
         until the environment ends; look at its log with later calls.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(true),
    );
    results::with_result::<CommandResult<'static>>(tool)
}

pub(super) fn install_packages() -> Tool {
    let tool = results::tool::<InstallArguments>(
        "install_packages",
        "Install packages",
        "Install packages with the package manager of the environment's runtime: pip for python, npm for node, the \
         system's (apt-get, apk, dnf, …) for shell. execute finds them afterwards. Returns what the package manager \
         printed and its exit code; it is stopped after 5 minutes unless the operator says otherwise. One name that is not allowed refuses the whole call.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(true),
    );
    results::with_result::<CommandResult<'static>>(tool)
}

impl Inner {
    pub(super) async fn execute(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ExecuteArguments = arguments::read("execute", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let code = Code {
            language: arguments.language.map(Into::into),
            text: arguments.code,
            timeout_s: arguments.timeout_seconds,
            stdin: arguments.stdin.unwrap_or_default(),
            working_directory: arguments.working_directory.map(parse_folder).transpose()?,
            variables: Variables::parse(arguments.environment.unwrap_or_default()).map_err(ArgumentFault::Variables)?,
        };
        caller.progress.stage(0.0, None, "running the code");
        let hear = |stream, bytes: &[u8]| caller.progress.output(stream, bytes);
        let outcome = self.execution.execute(&caller.owner, id, code, watcher(caller, &hear)).await;
        self.command_result(outcome, caller).await
    }

    pub(super) async fn install_packages(
        &self,
        arguments: JsonObject,
        caller: &Caller,
    ) -> Result<CallToolResult, Failure> {
        let arguments: InstallArguments = arguments::read("install_packages", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        caller.progress.stage(0.0, None, "installing the packages");
        let hear = |stream, bytes: &[u8]| caller.progress.output(stream, bytes);
        let watcher = watcher(caller, &hear);
        let outcome = self.execution.install_packages(&caller.owner, id, &arguments.packages, watcher).await;
        self.command_result(outcome, caller).await
    }

    async fn command_result(
        &self,
        outcome: Result<Executed, Fault>,
        caller: &Caller,
    ) -> Result<CallToolResult, Failure> {
        // What a command had written that was stopped is told as well.
        let executed = match &outcome {
            Ok(executed) => Some(executed),
            Err(Fault::Caller(fault)) => fault.executed(),
            Err(Fault::Server(_)) => None,
        };
        let bytes = executed.map_or(0, |executed| executed.stdout.text.len() + executed.stderr.text.len());
        caller.kept.keep(self.result_room(&caller.owner, bytes).await?);
        results::object(&CommandResult::of(&outcome?))
    }
}

fn watcher<'a>(caller: &'a Caller, hear: &'a (dyn Fn(OutputStream, &[u8]) + Send + Sync)) -> Watcher<'a> {
    Watcher { cancelled: &caller.cancelled, hear }
}

fn parse_folder(path: String) -> Result<GuestPath, ArgumentFault> {
    GuestPath::parse(path).map_err(|source| ArgumentFault::Path { name: "working_directory", source })
}
