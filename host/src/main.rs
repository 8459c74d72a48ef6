// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The `waggle` binary: a runner where the server started it as one, else what its command line says.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use waggle::{causes::chain, cli, config::process_variable, machines};

/// glibc's allocator never gives back what lies between the long-lived pieces that many threads leave in many arenas:
/// with the same calls for hours a server of a few megabytes would come to hold ever more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // A runner is single-threaded: nothing may start a thread before this.
    if let Some(code) = machines::run_if_runner() {
        return code;
    }
    let arguments = match cli::parse(std::env::args_os(), &process_variable) {
        Ok(arguments) => arguments,
        Err(answer) => {
            // The answers to --help and --version come this way, too.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
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
