// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Collects the outputs of a running command, and adds them to the command's result.

use std::{sync::Arc, time::Duration};

use super::hints;
use crate::{
    domain::{
        command::{EndCause, Executed, OutputStream, User},
        output::Output,
    },
    service::{
        fault::{CallerFault, Fault},
        refusals::Refusals,
    },
};

/// The outputs of a command, and the number of network refusals before the command.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: Output,
    stderr: Output,
    /// The user that runs the command.
    user: User,
    /// The stderr of the call's earlier step.
    warnings: Option<String>,
    refusals: Arc<Refusals>,
    refused_before: u64,
    /// The number of background processes that were killed, and that no caller has been told of.
    memory_kills: u64,
}

/// Maximum bytes of each output in which hints search for the errors of programs. Such an error is usually the last.
const SEARCHED_BYTES_MAX: usize = 16 * 1024;

/// Maximum bytes of an earlier step's stderr in a result.
const WARNINGS_BYTES_MAX: usize = 4096;

impl Outputs {
    /// Creates empty outputs. Must be called before the command starts.
    pub(super) fn new(refusals: &Arc<Refusals>, bytes_max: usize) -> Self {
        Self {
            stdout: Output::with_limit(bytes_max),
            stderr: Output::with_limit(bytes_max),
            user: User::Sandbox,
            warnings: None,
            refusals: Arc::clone(refusals),
            refused_before: refusals.count(),
            memory_kills: 0,
        }
    }

    /// Sets the user that runs the command.
    pub(super) fn of(self, user: User) -> Self {
        Self { user, ..self }
    }

    pub(super) fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        match stream {
            OutputStream::Stdout => self.stdout.push(bytes),
            OutputStream::Stderr => self.stderr.push(bytes),
        }
    }

    /// Begins the output of a second step, after the first has succeeded. Only the second step's output is in the
    /// result, because a file in the guest contains the output of one step. Of the first step, warnings become part of
    /// the hint.
    pub(super) fn begin_step(&mut self, bytes_max: usize) {
        let warnings = self.stderr.excerpt(WARNINGS_BYTES_MAX).text;
        self.warnings = Some(warnings).filter(|warnings| !warnings.trim().is_empty());
        (self.stdout, self.stderr) = (Output::with_limit(bytes_max), Output::with_limit(bytes_max));
    }

    /// Adds background processes that were killed for want of memory.
    pub(super) fn note_memory_kills(&mut self, count: u64) {
        self.memory_kills = self.memory_kills.saturating_add(count);
    }

    /// Returns the kept text of both outputs.
    pub(super) fn texts(&self) -> [String; 2] {
        [&self.stdout, &self.stderr].map(|output| output.excerpt(output.kept_bytes()).text)
    }

    /// Adds the outputs to the result. If the command was stopped, returns a fault.
    pub(super) fn into_result(self, executed: Executed, timeout: Duration) -> Result<Executed, Fault> {
        let executed = Executed {
            hint: self.hint(&executed),
            stdout: self.stdout.with_file(executed.stdout.file),
            stderr: self.stderr.with_file(executed.stderr.file),
            ..executed
        };
        match executed.cause {
            EndCause::Exited | EndCause::OutOfMemory => Ok(executed),
            EndCause::TimedOut => Err(CallerFault::TimedOut { after: timeout, executed: Box::new(executed) }.into()),
            EndCause::Cancelled => Err(CallerFault::Cancelled { executed: Some(Box::new(executed)) }.into()),
        }
    }

    fn hint(&self, executed: &Executed) -> Option<String> {
        let warnings = self.warnings.as_ref().map(|warnings| format!("the first step wrote to stderr:\n{warnings}"));
        let background = executed.background_file.as_ref().map(|file| {
            format!("processes that the command left running write their output to {file}; read it with read_file")
        });
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(|output| output.excerpt(SEARCHED_BYTES_MAX).text);
        let defences = hints::on_defences(executed, self.user, [&stdout, &stderr]);
        let first = [self.refusal_hint(), self.memory_hint()].into_iter().flatten();
        let hints: Vec<_> = first.chain(defences).chain(background).chain(warnings).collect();
        (!hints.is_empty()).then(|| hints.join("\n"))
    }

    fn memory_hint(&self) -> Option<String> {
        let processes = match self.memory_kills {
            0 => return None,
            1 => "a background process was".to_owned(),
            count => format!("{count} background processes were"),
        };
        Some(format!("{processes} killed because the environment had run out of memory"))
    }

    fn refusal_hint(&self) -> Option<String> {
        let count = self.refusals.count().saturating_sub(self.refused_before);
        let last = self.refusals.last().filter(|_| count > 0)?;
        let (who, remedy) = match last.exceeds_a_rate() {
            true => ("network", "open fewer at a time; only the server's operator can raise the rate"),
            false => (
                "network policy",
                "the server's operator and the network argument of create_environment decide what is allowed",
            ),
        };
        Some(format!("the {who} refused {count} connections or names during this call, the latest: {last}; {remedy}"))
    }
}
