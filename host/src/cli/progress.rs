// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How far a pull is: a bar on a terminal, a line now and then elsewhere. Both go to standard error; results do not.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{domain::stage::Stage, mutex::lock};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// From one line to the next, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A stage's bar: what it does, how much of it is done, and how fast.
const BAR: &str = "{prefix} {msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";

/// Tells a person how far one image is.
pub(super) struct Told {
    image: String,
    bar: ProgressBar,
    lines: Option<Mutex<Line>>,
}

struct Line {
    stage: &'static str,
    at: Instant,
}

impl Told {
    pub(super) fn new(image: String) -> Self {
        if !io::stderr().is_terminal() {
            let lines = Some(Mutex::new(Line { stage: "", at: Instant::now() }));
            return Self { image, bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), lines };
        }
        let bar = ProgressBar::no_length();
        // The template is a constant; with a broken one there would only be another bar.
        bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(image.clone());
        Self { image, bar, lines: None }
    }

    pub(super) fn hear(&self, stage: Stage) {
        let what = stage.describe();
        if let Some(amount) = stage.amount() {
            self.bar.set_message(what);
            self.bar.set_length(amount.total);
            self.bar.set_position(amount.done);
        }
        let Some(lines) = &self.lines else { return };
        let mut last = lock(lines);
        if last.stage == what && last.at.elapsed() < LINE_INTERVAL {
            return;
        }
        (last.stage, last.at) = (what, Instant::now());
        let amount = stage.amount().map(|amount| format!(", {amount}")).unwrap_or_default();
        // Nobody is there to be told that nobody is there.
        let _ = writeln!(io::stderr(), "{}: {what}{amount}", self.image);
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
