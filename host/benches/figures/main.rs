// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The figures of docs/benchmarks/calls.md: what waggle adds to a bare machine, and how it compares with sshd, measured
//! side by side in one run. `./taskw bench` makes what this needs and starts it; words after it choose groups, and with
//! `--quick` it writes nothing.
//!
//! Nothing here passes or fails by its time: a machine that runs other work would decide that.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement ends where its preparation fails; it prints, and counts far below 2^52"
)]

mod bare;
mod calls;
mod contest;
mod cpio;
mod handover;
mod host;
mod mux;
mod ours;
mod page;
mod places;
mod rivals;
mod samples;
mod served;
mod sshd;
mod stats;

use std::{fs, process::ExitCode};

fn main() -> ExitCode {
    // The machines' runners are this program, started again.
    if let Some(code) = waggle::machines::run_if_runner() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == handover::SUBCOMMAND => handover::run(rest),
        Some((first, [root])) if first == ours::SUBCOMMAND => ours::serve_locally(root),
        _ => measure(&arguments),
    }
    ExitCode::SUCCESS
}

fn measure(arguments: &[String]) {
    let groups: Vec<_> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|word| *word == group);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut page = String::new();
    // What is measured is on the screen before the next part can fail.
    let mut tell = |part: &str| {
        println!("{part}");
        page += part;
    };
    tell(&page::head());
    if wanted("machine") {
        tell(&runtime.block_on(calls::measure()));
    }
    if wanted("sshd") {
        tell(&runtime.block_on(rivals::in_a_machine()));
    }
    if wanted("local") {
        tell(&runtime.block_on(rivals::without_a_machine()));
    }
    tell(page::FOOT);
    if groups.is_empty() && !stats::is_quick() {
        fs::write(places::root().join("docs/benchmarks/calls.md"), page).unwrap();
    }
}
