// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `execute`, `install_packages`.

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
    domain::output::LostRange,
    service::execution::{Code, Executed},
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
    /// The code and everything that it started are killed after so many seconds; 30 if left out, at most 300.
    timeout_seconds: Option<f64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ExecuteResult {
    /// From start to exit, as measured in the environment.
    duration_ms: u64,
    /// 0 for success; 128 + n if signal n ended it.
    exit_code: i32,
    stderr: String,
    /// Bytes of stderr that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_lost: Option<Lost>,
    stdout: String,
    /// Bytes of stdout that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_lost: Option<Lost>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InstallArguments {
    /// As create_environment returned it.
    environment_id: String,
    /// Names separated by white space, versions allowed: `requests numpy==2.1`, `lodash@4 @types/node`. No options.
    packages: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct InstallResult {
    /// The package manager's: 0 for success.
    exit_code: i32,
    stderr: String,
    /// Bytes of stderr that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_lost: Option<Lost>,
    stdout: String,
    /// Bytes of stdout that were left out of a long output, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_lost: Option<Lost>,
}

/// A range of bytes, up to but not including `to`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Lost {
    from: u64,
    to: u64,
}

pub(super) fn execute() -> Tool {
    let tool = results::tool::<ExecuteArguments>(
        "execute",
        "Execute code",
        "Run a program in an environment and wait for it to end. Returns stdout, stderr and the exit code; a non-zero \
         exit code is a result, not an error. Each call is a process of its own in /home/sandbox: files stay, variables \
         do not. Only what is printed comes back, so print what you want to see. Of a very long output the middle is \
         left out. At the time-out everything that the call started is killed.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(true),
    );
    results::with_result::<ExecuteResult>(tool)
}

pub(super) fn install_packages() -> Tool {
    let tool = results::tool::<InstallArguments>(
        "install_packages",
        "Install packages",
        "Install packages with the package manager of the environment's runtime: pip for python, npm for node, the \
         system's (apt-get, apk, dnf, …) for shell. execute finds them afterwards. Returns what the package manager \
         printed and its exit code. One name that is not allowed refuses the whole call.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(true),
    );
    results::with_result::<InstallResult>(tool)
}

impl Inner {
    pub(super) async fn execute(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let arguments: ExecuteArguments = arguments::read("execute", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        let code = Code {
            language: arguments.language.map(Into::into),
            text: arguments.code,
            timeout_s: arguments.timeout_seconds,
        };
        caller.progress.stage(0, None, "running the code");
        let Executed { exit_code, duration, stdout, stderr } =
            self.execution.execute(&caller.owner, id, code, &caller.cancelled).await?;
        results::object(&ExecuteResult {
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            exit_code,
            stderr: stderr.text,
            stderr_lost: stderr.lost.map(lost),
            stdout: stdout.text,
            stdout_lost: stdout.lost.map(lost),
        })
    }

    pub(super) async fn install_packages(
        &self,
        arguments: JsonObject,
        caller: &Caller,
    ) -> Result<CallToolResult, Failure> {
        let arguments: InstallArguments = arguments::read("install_packages", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        caller.progress.stage(0, None, "installing the packages");
        let Executed { exit_code, stdout, stderr, .. } =
            self.execution.install_packages(&caller.owner, id, &arguments.packages, &caller.cancelled).await?;
        results::object(&InstallResult {
            exit_code,
            stderr: stderr.text,
            stderr_lost: stderr.lost.map(lost),
            stdout: stdout.text,
            stdout_lost: stdout.lost.map(lost),
        })
    }
}

fn lost(range: LostRange) -> Lost {
    Lost { from: range.from, to: range.to }
}
