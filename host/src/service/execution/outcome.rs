// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a command comes to: how it ended, and what it had written by then.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    domain::{
        output::{Output, OutputWindow},
        ports::{EndCause, Ended, OutputStream},
    },
    service::{
        fault::{CallerFault, Fault},
        refusals::Refusals,
    },
};

/// A command that is over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executed {
    /// How it ended. Of several steps, how the last one did; the time is that of all.
    pub ended: Ended,
    /// What it wrote to its standard output.
    pub stdout: Output,
    /// What it wrote to its standard error.
    pub stderr: Output,
    /// That the network policy refused something while it ran, which programs report as all kinds of faults.
    pub hint: Option<String>,
}

impl fmt::Display for Executed {
    /// What it wrote, as the end of a sentence that says why it was stopped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, output) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !output.text.is_empty() {
                write!(f, "\n{name} until then:\n{}", output.text)?;
            }
        }
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

/// Collects the two outputs while a command runs.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: OutputWindow,
    stderr: OutputWindow,
    refusals: Arc<Refusals>,
    refused_before: u64,
}

impl Outputs {
    /// For a command that is yet to start, in an environment with these refusals.
    pub(super) fn new(refusals: &Arc<Refusals>) -> Self {
        Self {
            stdout: OutputWindow::default(),
            stderr: OutputWindow::default(),
            refusals: Arc::clone(refusals),
            refused_before: refusals.count(),
        }
    }

    pub(super) fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        match stream {
            OutputStream::Stdout => self.stdout.push(bytes),
            OutputStream::Stderr => self.stderr.push(bytes),
        }
    }

    /// What the call comes to: a result if nobody stopped the command; `limit` was its time-out.
    pub(super) fn into_result(self, ended: Ended, limit: Duration) -> Result<Executed, Fault> {
        let hint = self.hint();
        let executed = Executed { ended, stdout: self.stdout.finish(), stderr: self.stderr.finish(), hint };
        match executed.ended.cause {
            EndCause::Exited | EndCause::OutOfMemory => Ok(executed),
            EndCause::TimedOut => Err(CallerFault::TimedOut { after: limit, executed: Box::new(executed) }.into()),
            EndCause::Cancelled => Err(CallerFault::Cancelled { executed: Some(Box::new(executed)) }.into()),
        }
    }

    fn hint(&self) -> Option<String> {
        let count = self.refusals.count().saturating_sub(self.refused_before);
        let last = self.refusals.last().filter(|_| count > 0)?;
        Some(format!(
            "the network policy of this environment refused {count} connections or names while this ran, the latest: \
             {last}; what is allowed is up to the server's operator and to create_environment's network"
        ))
    }
}
