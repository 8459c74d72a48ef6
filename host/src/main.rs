// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The `waggle` binary: a runner if the server started it as one, else the command line.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use waggle::{causes::chain, cli, config::process_variable, machines};

/// jemalloc instead of glibc's allocator, which does not return memory between long-lived allocations in its per-thread
/// arenas: a server of a few megabytes would grow for hours under the same calls.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // A runner must be single-threaded, so nothing may start a thread before this.
    if let Some(code) = machines::run_if_runner() {
        return code;
    }
    let arguments = match cli::parse(std::env::args_os(), &process_variable) {
        Ok(arguments) => arguments,
        Err(fault) => {
            // The output of --help and --version is such an error, too.
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
