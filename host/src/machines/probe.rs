// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Whether this host's KVM runs guests, as a child process finds out; the answer is for the life of the server.

use std::{ffi::OsStr, fmt, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    time::timeout,
};

use super::{
    probe_guest::{UNUSABLE, USABLE},
    roles,
};

/// From one line of the probe to the next. All of it takes 0.03 s where KVM is unusable and up to 0.7 s where it is
/// nested in an emulation; a busy machine may take longer, a test that makes no progress for so long is one that hangs.
const LINE_MAX: Duration = Duration::from_secs(1);
/// Bytes of a probe's answer that are read; its lines are short.
const ANSWER_BYTES_MAX: u64 = 4096;

/// What the probe found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kvm {
    /// Guests run.
    Usable,
    /// They do not, for this reason.
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

/// Runs the probe: `runner` is this binary. Takes [`LINE_MAX`] for each of its few lines at most.
pub(super) async fn probe(runner: &OsStr) -> Kvm {
    let mut command = roles::command(runner, roles::PROBE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(fault) => return Kvm::Unusable(format!("the probe did not start: {fault}")),
    };
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout).take(ANSWER_BYTES_MAX);
        // Time up or not, what has been said so far counts; dropping the child kills it.
        while let Ok(Ok(1..)) = timeout(LINE_MAX, stdout.read_until(b'\n', &mut answer)).await {}
    }
    verdict(&String::from_utf8_lossy(&answer))
}

fn verdict(answer: &str) -> Kvm {
    match answer.lines().last() {
        Some(USABLE) => Kvm::Usable,
        Some(line) => Kvm::Unusable(match line.strip_prefix(UNUSABLE) {
            Some(reason) => reason.to_owned(),
            None => format!("{line}: no answer within {LINE_MAX:?}"),
        }),
        None => Kvm::Unusable(format!("the probe said nothing within {LINE_MAX:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_verdict() {
        assert_eq!(verdict("trivial\nmmio\nsse2\nloop\nusable\n"), Kvm::Usable);
        assert_eq!(verdict("trivial\nunusable: trivial: x\n"), Kvm::Unusable("trivial: x".into()));
    }

    #[test]
    fn a_probe_that_hangs_names_its_test() {
        assert_eq!(verdict("trivial\nmmio\nsse2\nloop\n").to_string(), "KVM unusable: loop: no answer within 1s");
        assert_eq!(verdict("").to_string(), "KVM unusable: the probe said nothing within 1s");
    }
}
