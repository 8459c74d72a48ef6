// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The `waggle` binary: a runner if the server started this process as a runner, otherwise the command line.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use waggle::{cli, config::process_variable, machines};
use waggle_shared::causes::chain;

/// jemalloc instead of glibc's allocator. glibc does not return free memory between long-lived allocations in its
/// per-thread arenas, so a server of a few megabytes would grow for hours under constant load.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // A runner must be single-threaded, so no thread may start before this call.
    if let Some(code) = machines::run_if_runner() {
        return code;
    }
    let arguments = match cli::parse(std::env::args_os(), &process_variable) {
        Ok(arguments) => arguments,
        Err(fault) => {
            // clap also returns the output of --help and --version as an error.
            let _ = fault.print();
            return if fault.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match cli::run(arguments) {
        Ok(code) => code,
        Err(fault) => {
            let _ = writeln!(io::stderr(), "waggle: {}", chain(&*fault));
            if let Some(step) = cli::next_step(&*fault) {
                let _ = writeln!(io::stderr(), "hint: {step}");
            }
            ExitCode::FAILURE
        }
    }
}
