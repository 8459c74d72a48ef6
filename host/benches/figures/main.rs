// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The figures of docs/benchmarks/calls.md: the cost of waggle compared with a bare machine, both measured in the same
//! run. `./taskw bench` prepares and starts the benchmark. With `--quick` the benchmark measures less and writes
//! nothing.
//!
//! No measured time makes the benchmark fail, because the times depend on other work on the machine.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement ends where its preparation fails; it prints, and counts far below 2^52"
)]

mod bare;
mod calls;
mod cpio;
mod host;
mod page;
mod places;
mod samples;
mod served;
mod stats;

use std::{fs, process::ExitCode};

fn main() -> ExitCode {
    // The runner processes of the machines execute this same program.
    if let Some(code) = waggle::machines::run_if_runner() {
        return code;
    }
    let figures = tokio::runtime::Runtime::new().unwrap().block_on(calls::measure());
    let page = format!("{}{figures}{}", page::head(), page::FOOT);
    println!("{page}");
    if !stats::is_quick() {
        fs::write(places::root().join("docs/benchmarks/calls.md"), page).unwrap();
    }
    ExitCode::SUCCESS
}
