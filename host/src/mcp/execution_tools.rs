// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The tools `execute` and `install_packages`.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use rmcp::model::ToolAnnotations;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::{RuntimeArgument, parse_id, parse_path},
    call_context::CallContext,
    command_result::CommandResult,
    failure::Outcome,
    results,
    services::Services,
    tool::ServedTool,
};
use crate::{
    domain::{
        command::{Command, Executed},
        environment_id::EnvironmentId,
        variables::Variables,
    },
    service::{
        execution::{InstallationWatcher, PackageRequest, Watcher},
        fault::{ArgumentFault, Fault},
    },
};

/// Maximum memory for the result of a command in a task: the two outputs (1 MiB together), and the result, which is no
/// longer than its written form of at most a megabyte.
pub(super) const RESULT_BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExecuteArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
    /// The program text, at most 512,000 bytes. It is run from a file.
    code: String,
    /// The language of the code; the environment's runtime if left out.
    language: Option<RuntimeArgument>,
    /// The time in seconds after which the code and everything that it started are killed; by default 30 and at most
    /// 300, unless the server's operator set other limits.
    timeout_seconds: Option<f64>,
    /// The standard input of the code, at most 10 MiB; empty if left out.
    stdin: Option<String>,
    /// The folder that the code starts in, absolute or relative to /home/sandbox; by default the image's own working
    /// directory, or else /home/sandbox.
    working_directory: Option<String>,
    /// Environment variables for this call, by name, in addition to those of the environment; at most 256 variables and
    /// 64 KiB in total. PATH cannot be set.
    environment: Option<BTreeMap<String, String>>,
    /// The maximum bytes of stdout and of stderr in the result, at most 524,288; by default 65,536, unless the server's
    /// operator set another default.
    output_bytes: Option<f64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InstallArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
    /// Package names separated by white space or commas, or as a JSON list, optionally with versions, such as
    /// `requests numpy>=2,<3` or `lodash@4 @types/node`. Options, URLs and paths are not allowed.
    packages: String,
    /// True to install packages of the image's own package manager (apt-get, apk, dnf, …) instead of the runtime's: a
    /// compiler, a library, a program. It runs as root.
    system: Option<bool>,
}

pub(super) fn execute() -> ServedTool {
    ServedTool::new(
        "execute",
        "Execute code",
        "Run a program in an environment and wait for it to end. Returns stdout, stderr and the exit code; a \
         non-zero exit code is a result, not an error. Each call is a separate process. It starts in \
         /home/sandbox unless the image or working_directory says otherwise. Files persist between calls, \
         variables do not. Only printed output is returned, so print what you want to see. The middle of an \
         output above 64 KiB is left out; stdout_file and stderr_file then name files with the whole output (up \
         to 64 MiB), which read_file reads in parts. The environment keeps the last 16 such files. output_bytes \
         sets another limit. At the timeout everything that the call started gets SIGTERM, and is killed a second \
         later. If a program takes longer or must keep running (a server), start it in the background: `./server &` \
         in a shell call. The program then runs until the environment ends; background_file names the file with its \
         further output.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(true),
        |services, arguments, context| services.execute(arguments, context).boxed(),
    )
    .with_result::<CommandResult<'static>>()
    .with_large_results()
    .with_tasks(RESULT_BYTES_MAX)
}

pub(super) fn install_packages() -> ServedTool {
    ServedTool::new(
        "install_packages",
        "Install packages",
        "Install packages with the package manager of the environment's runtime: pip for python, npm for node, the \
         system's (apt-get, apk, dnf, …) for shell. With system: true, the system's package manager in any \
         environment. Code that you run with execute can use the packages afterwards. Returns the output and the \
         exit code of the package manager, which is stopped after 5 minutes unless the server's operator set another \
         limit. If one of the names is invalid, nothing is installed. Installations in one environment run one after \
         another.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(true),
        |services, arguments, context| services.install_packages(arguments, context).boxed(),
    )
    .with_list("packages")
    .with_result::<CommandResult<'static>>()
    .with_large_results()
    .with_tasks(RESULT_BYTES_MAX)
}

impl Services {
    async fn execute(&self, arguments: ExecuteArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        let working_directory = arguments.working_directory.map(|path| parse_path("working_directory", path));
        let variables = Variables::parse(arguments.environment.unwrap_or_default());
        let command = Command {
            stdin: arguments.stdin.unwrap_or_default().into_bytes(),
            working_directory: working_directory.transpose()?,
            env: variables.map_err(ArgumentFault::Variables)?.pairs().to_vec(),
            timeout: self.execution.timeout(arguments.timeout_seconds)?,
            output_bytes_max: self.execution.output_bytes(arguments.output_bytes)?,
            ..Command::default()
        };
        let language = arguments.language.map(Into::into);
        context.progress.stage(0.0, None, "running the code");
        let on_output = |stream, bytes: &[u8]| context.progress.output(stream, bytes);
        let watcher = Watcher { cancelled: &context.cancelled, on_output: &on_output };
        let outcome = self.execution.execute(&context.owner, id, language, arguments.code, command, watcher).await;
        self.command_result(id, outcome, context).await
    }

    async fn install_packages(&self, arguments: InstallArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        context.progress.stage(0.0, None, "installing the packages");
        let progress = context.progress.clone();
        let on_output = Box::new(move |stream, bytes: &[u8]| progress.output(stream, bytes));
        let watcher = InstallationWatcher { cancelled: &context.cancelled, on_output };
        let request = PackageRequest { packages: &arguments.packages, system: arguments.system == Some(true) };
        let outcome = self.execution.install_packages(&context.owner, id, request, watcher).await;
        self.command_result(id, outcome, context).await
    }

    async fn command_result(
        &self,
        id: EnvironmentId,
        outcome: Result<Executed, Fault>,
        context: &CallContext,
    ) -> Outcome {
        // The error of a stopped command includes the command's output, so the error needs a reservation as well.
        let executed = match &outcome {
            Ok(executed) => Some(executed),
            Err(Fault::Caller(fault)) => fault.executed(),
            Err(Fault::Server(_)) => None,
        };
        let bytes = executed.map_or(0, |executed| executed.stdout.kept_bytes() + executed.stderr.kept_bytes());
        let mut reservation = self.reserve_result(&context.owner, results::bytes_max(bytes)).await?;
        let written = match outcome {
            Ok(executed) => {
                let resumed = self.resumed_note(&context.owner, id);
                CommandResult::write(&executed, |mut result| {
                    result.resumed = resumed;
                    results::object(&result)
                })
            }
            // The error includes the output.
            Err(fault) => Err(fault.into()),
        };
        if let Ok(result) = &written {
            reservation.shrink(results::result_bytes(result));
        }
        context.memory.hold_result(reservation);
        written
    }
}
