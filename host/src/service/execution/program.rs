// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runs a file that lies in an environment already, with arguments of its own.

use std::time::Duration;

use super::{Execution, Outputs, Watcher};
use crate::{
    domain::{
        environment::EnvironmentId,
        guest_path::GuestPath,
        output::OUTPUT_BYTES_MAX,
        ports::{Command, Ended, User},
        principal::Principal,
        variables::Variables,
    },
    service::fault::{CallerFault, Fault},
};

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file; the environment's runtime says what interprets it.
    pub path: GuestPath,
    /// What it is given.
    pub arguments: Vec<String>,
    /// What it reads from its standard input.
    pub stdin: Vec<u8>,
    /// What its environment has besides.
    pub variables: Variables,
    /// It is killed after this.
    pub timeout: Duration,
}

impl Execution {
    /// Runs the program to its end, however it ends; the watcher gets the output, and nobody else does.
    ///
    /// # Errors
    /// What stands against the call, and a machine that goes away under it.
    pub async fn run_program(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        program: Program,
        watcher: Watcher<'_>,
    ) -> Result<Ended, Fault> {
        let call = self.environments.begin(owner, id).await?;
        let runtime = call.environment.runtime;
        let operator = self.rules.commands.of(runtime).exec.as_ref();
        let mut argv = runtime.interpreter(operator, call.machine.capabilities()).map_err(CallerFault::Runtime)?;
        argv.push(program.path.as_str().to_owned());
        argv.extend(program.arguments);
        let command = Command {
            argv,
            script: None,
            stdin: program.stdin,
            env: program.variables.into_pairs(),
            // Where the program's file lies, if its path is relative.
            working_directory: Some(GuestPath::home()),
            user: User::Sandbox,
            timeout: program.timeout,
            limits: self.rules.limits,
            keep_output_above_bytes: OUTPUT_BYTES_MAX,
        };
        let mut outputs = Outputs::new(&call.refusals);
        self.run(owner, &call, command, watcher, &mut outputs, "run the program").await
    }
}
