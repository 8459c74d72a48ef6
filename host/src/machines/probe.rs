// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks in a child process whether this host's KVM runs guests.

use std::{ffi::OsStr, fmt, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    time::timeout,
};

use super::{
    probe_guest::{UNUSABLE, USABLE},
    roles,
};

/// Timeout from one line of the probe to the next. All tests together take 0.03 s if KVM is unusable, and up to 0.7 s
/// if this host is itself an emulated machine. On a busy emulated machine, a single test can take more than a second.
const LINE_MAX: Duration = Duration::from_secs(5);
/// Maximum length of the probe's output in bytes. The lines are short.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The result of the probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kvm {
    Usable,
    /// Guests do not run, for this reason.
    Unusable(String),
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("KVM works"),
            Self::Unusable(reason) => write!(f, "KVM unusable: {reason}"),
        }
    }
}

/// Runs the probe. `runner` is this binary. Takes at most [`LINE_MAX`] for each line of output.
pub(super) async fn probe(runner: &OsStr) -> Kvm {
    let mut command = roles::command(runner, roles::PROBE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(fault) => return Kvm::Unusable(format!("failed to start the probe: {fault}")),
    };
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout).take(ANSWER_BYTES_MAX);
        // After a timeout, the lines printed so far decide. Dropping `child` kills the process.
        while let Ok(Ok(1..)) = timeout(LINE_MAX, stdout.read_until(b'\n', &mut answer)).await {}
    }
    verdict(&String::from_utf8_lossy(&answer))
}

fn verdict(answer: &str) -> Kvm {
    match answer.lines().last() {
        Some(USABLE) => Kvm::Usable,
        Some(line) => Kvm::Unusable(match line.strip_prefix(UNUSABLE) {
            Some(reason) => reason.to_owned(),
            None => format!("{line}: the test crashed or took more than {LINE_MAX:?}"),
        }),
        None => Kvm::Unusable(format!("the probe crashed or printed nothing within {LINE_MAX:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_is_the_verdict() {
        assert_eq!(verdict("trivial\nmmio\nsse2\nloop\nusable\n"), Kvm::Usable);
        assert_eq!(verdict("trivial\nunusable: trivial: x\n"), Kvm::Unusable("trivial: x".into()));
    }

    #[test]
    fn reason_names_the_test_that_did_not_finish() {
        let unusable = verdict("trivial\nmmio\nsse2\nloop\n").to_string();
        assert_eq!(unusable, "KVM unusable: loop: the test crashed or took more than 5s");
        assert_eq!(verdict("").to_string(), "KVM unusable: the probe crashed or printed nothing within 5s");
    }
}
