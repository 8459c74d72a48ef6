// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Where libkrun's log goes: the guest's console, which comes as part of it, to stdout, everything else to stderr.

use std::io;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::{fd::BorrowedFd, io::write, stdio};

/// What libkrun calls the lines of the guest's console.
const CONSOLE: &str = "init_or_kernel";

struct ConsoleAndLog {
    level: LevelFilter,
}

/// Starts it: 1 is errors, which are always written, and 5 is everything.
pub(super) fn start(level: u8) -> io::Result<()> {
    let level = match level {
        0 | 1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    log::set_max_level(level);
    // One that lives as long as the process.
    log::set_logger(Box::leak(Box::new(ConsoleAndLog { level }))).map_err(io::Error::other)
}

impl Log for ConsoleAndLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if record.target() == CONSOLE {
            put(stdio::stdout(), &format!("{}\n", record.args()));
        } else if self.enabled(record.metadata()) {
            put(stdio::stderr(), &format!("{} {}: {}\n", record.level(), record.target(), record.args()));
        }
    }

    fn flush(&self) {}
}

// A line that cannot be written has no other place to go.
fn put(place: BorrowedFd<'_>, line: &str) {
    let mut rest = line.as_bytes();
    while let Ok(count @ 1..) = write(place, rest) {
        rest = rest.get(count..).unwrap_or_default();
    }
}
