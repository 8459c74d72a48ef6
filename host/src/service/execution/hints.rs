// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Hints about defences in the guest, for the results of commands that failed. Programs report a defence as an error of
//! their own, often with advice that does not apply here.

use crate::domain::command::{EndCause, Executed, RefusedCall, User};

/// The number of the signal SIGSYS. The filter kills programs with it that use the system calls of 32-bit programs.
const SIGSYS: i32 = 31;

/// Hints for texts that programs print. Each hint is given if one of its texts is in an output.
type Texts = &'static [(&'static [&'static str], &'static str)];

/// The hints for programs that would need root, for commands of the sandbox user.
const TEXTS_OF_ROOT: Texts = &[
    (
        &[
            "sudo: The \"no new privileges\" flag is set",
            "sudo: effective uid is not 0",
            "su: Authentication failure",
            "su: must be suid",
        ],
        "programs run as a user who cannot become root; install_packages with \"system\": true installs system \
         packages as root, and only the server's operator can allow sudo and su, with WAGGLE_RELAX=no-new-privileges",
    ),
    (
        &[
            "are you root?",
            "has to be run with superuser privileges",
            "The requested operation requires superuser privileges",
            "Root privileges are required",
            "Unable to lock database: Permission denied",
        ],
        "programs run as a user who cannot become root; install_packages with \"system\": true installs system \
         packages as root",
    ),
];

const TEXTS: Texts = &[
    (
        &["Bad system call"],
        "a program was killed because it used system calls that do not exist here; 32-bit programs cannot run, so use \
         a 64-bit build",
    ),
    (
        &["Exec format error"],
        "a program is built for another processor or system; programs must be 64-bit programs for x86 Linux",
    ),
];

/// Returns the hints for the result of a user's command with these outputs. A command that succeeded gets none.
pub(super) fn on_defences(executed: &Executed, user: User, outputs: [&str; 2]) -> Vec<String> {
    if executed.exit_code == 0 && executed.cause == EndCause::Exited {
        return Vec::new();
    }
    let killed = executed.signal == Some(SIGSYS) || executed.exit_code == 128 + SIGSYS;
    let signal = if killed { "Bad system call" } else { "" };
    let shown = |text: &&str| signal == *text || outputs.iter().any(|output| output.contains(text));
    let of_root = if user == User::Sandbox { TEXTS_OF_ROOT } else { &[] };
    let texts = of_root.iter().chain(TEXTS).filter(|(texts, _)| texts.iter().any(shown));
    refused(&executed.refused).into_iter().chain(texts.map(|(_, hint)| (*hint).to_owned())).collect()
}

/// Returns the hint about system calls that the filter refused.
fn refused(calls: &[RefusedCall]) -> Option<String> {
    let times = |call: &RefusedCall| match call.count {
        1 => call.name.clone(),
        count => format!("{} ({count} times)", call.name),
    };
    let calls: Vec<_> = calls.iter().map(times).collect();
    (!calls.is_empty()).then(|| {
        format!(
            "the environment's system call filter refused {} during this call, with \"Operation not permitted\"; only \
             the server's operator can switch the filter off, with WAGGLE_RELAX=filter, which allows user namespaces \
             and mounts inside of them; programs that would isolate themselves need an option that turns this off, \
             such as --no-sandbox of Chromium",
            calls.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::output::Output;

    fn ended(exit_code: i32, refused: &[(&str, u32)]) -> Executed {
        let call = |(name, count): &(&str, u32)| RefusedCall { name: (*name).to_owned(), count: *count };
        Executed {
            exit_code,
            signal: None,
            cause: EndCause::Exited,
            duration: Duration::ZERO,
            stdout: Output::default(),
            stderr: Output::default(),
            hint: None,
            background_file: None,
            refused: refused.iter().map(call).collect(),
        }
    }

    #[track_caller]
    fn check(executed: &Executed, stderr: &str, expected: &[&str]) {
        let found = on_defences(executed, User::Sandbox, ["", stderr]);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (hint, part) in found.iter().zip(expected) {
            assert!(hint.contains(part), "{hint}");
        }
    }

    #[test]
    fn refused_calls_are_named_with_their_switch_if_the_command_failed() {
        let calls = [("clone", 1), ("mount", 3)];
        check(&ended(1, &calls), "", &["refused clone, mount (3 times) during"]);
        check(&ended(1, &calls), "", &["WAGGLE_RELAX=filter,"]);
        check(&ended(0, &calls), "", &[]);
        check(&Executed { cause: EndCause::TimedOut, ..ended(0, &calls) }, "", &["clone"]);
        check(&ended(1, &[]), "unshare failed", &[]);
    }

    #[test]
    fn texts_of_refusals_get_a_hint_if_the_command_failed() {
        let sudo = "sudo: The \"no new privileges\" flag is set, which prevents sudo from running as root.\n";
        check(&ended(1, &[]), sudo, &["WAGGLE_RELAX=no-new-privileges"]);
        check(&ended(0, &[]), sudo, &[]);
        let apt = "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?\n";
        check(&ended(100, &[]), apt, &["install_packages with \"system\": true"]);
        for text in [
            "Error: This command has to be run with superuser privileges (under the root user on most systems).\n",
            "The requested operation requires superuser privileges. Please log in as a user with elevated rights\n",
            "Root privileges are required to run this command.\n",
        ] {
            check(&ended(1, &[]), text, &["install_packages with \"system\": true"]);
            // The command was an installation of system packages.
            assert!(on_defences(&ended(1, &[]), User::Root, ["", text]).is_empty());
        }
        check(&ended(126, &[]), "sh: 1: ./arm: Exec format error\n", &["for x86 Linux"]);
    }

    #[test]
    fn death_by_sigsys_names_32_bit_programs_once() {
        let signal = Executed { signal: Some(SIGSYS), ..ended(159, &[]) };
        check(&signal, "Bad system call\n", &["32-bit"]);
        check(&ended(159, &[]), "", &["32-bit"]);
        check(&ended(1, &[]), "sh: line 1: 7 Bad system call  ./old\n", &["32-bit"]);
        check(&Executed { signal: Some(11), ..ended(139, &[]) }, "", &[]);
    }
}
