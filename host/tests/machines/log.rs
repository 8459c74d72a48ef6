// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Catches what this test process logs. The log is the process's and not a thread's: a place that logs decides once,
//! for all threads, whether anyone listens, so logs of threads get lost where tests run side by side.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

/// What has been logged so far.
#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// As text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Starts a log in the server's format, of events up to a level; once a process.
pub(crate) fn capture(level: Level) -> Written {
    let written = Written::default();
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(written.clone()).init();
    written
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
