// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Splits the log of libkrun or msb_krun: lines of the guest's console go to stdout, all other lines to stderr.

use std::io;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::{
    fd::OwnedFd,
    io::{dup, write},
    stdio,
};

/// The log target of the guest's console.
const CONSOLE: &str = "init_or_kernel";

struct ConsoleAndLog {
    level: LevelFilter,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Installs the logger. Levels 0 and 1 log only errors, and level 5 logs everything. The logger has its own copies of
/// both descriptors.
pub(super) fn start(level: u8) -> io::Result<()> {
    let level = match level {
        0 | 1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    log::set_max_level(level);
    let logger = ConsoleAndLog { level, stdout: dup(stdio::stdout())?, stderr: dup(stdio::stderr())? };
    log::set_logger(Box::leak(Box::new(logger))).map_err(io::Error::other)
}

impl Log for ConsoleAndLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if record.target() == CONSOLE {
            print(&self.stdout, &format!("{}\n", record.args()));
        } else if self.enabled(record.metadata()) {
            print(&self.stderr, &format!("{} {}: {}\n", record.level(), record.target(), record.args()));
        }
    }

    fn flush(&self) {}
}

// Write errors are ignored, because there is no other output to report them to.
fn print(output: &OwnedFd, line: &str) {
    let mut rest = line.as_bytes();
    while let Ok(count @ 1..) = write(output, rest) {
        rest = rest.get(count..).unwrap_or_default();
    }
}
