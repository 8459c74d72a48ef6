// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The machine's console, which is the agent's only log. The host stores the last lines of the console.

use std::error::Error;

use waggle_protocol::CONSOLE_PREFIX;

/// Writes one line to the console.
#[expect(clippy::print_stderr, reason = "stderr is the console")]
pub fn report(line: &str) {
    eprintln!("{CONSOLE_PREFIX}{line}");
}

/// Formats an error and its causes as one line.
pub(crate) fn with_cause(fault: &dyn Error) -> String {
    let mut line = fault.to_string();
    let mut cause = fault.source();
    while let Some(source) = cause {
        line.push_str(": ");
        line.push_str(&source.to_string());
        cause = source.source();
    }
    line
}
