// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The progress of a pull, on standard error: a bar if standard error is a terminal, otherwise a line every few
//! seconds.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::domain::stage::Stage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use waggle_shared::mutex::lock;

/// Interval of the lines if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Template of the bar: the image, the stage, its amount and its speed.
const BAR: &str = "{prefix} {msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";

/// Reports the progress of one image.
pub(super) struct PullProgress {
    image: String,
    bar: ProgressBar,
    lines: Option<Mutex<Line>>,
}

struct Line {
    stage: &'static str,
    at: Instant,
}

impl PullProgress {
    pub(super) fn new(image: String) -> Self {
        if !io::stderr().is_terminal() {
            let lines = Some(Mutex::new(Line { stage: "", at: Instant::now() }));
            return Self { image, bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), lines };
        }
        let bar = ProgressBar::no_length();
        // The template is a valid constant. The fallback would only change the bar's look.
        bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(image.clone());
        Self { image, bar, lines: None }
    }

    pub(super) fn report(&self, stage: Stage) {
        let name = stage.describe();
        if let Some(amount) = stage.amount() {
            self.bar.set_message(name);
            self.bar.set_length(amount.total);
            self.bar.set_position(amount.done);
        }
        let Some(lines) = &self.lines else { return };
        let mut last = lock(lines);
        if last.stage == name && last.at.elapsed() < LINE_INTERVAL {
            return;
        }
        (last.stage, last.at) = (name, Instant::now());
        let amount = stage.amount().map(|amount| format!(", {amount}")).unwrap_or_default();
        // If standard error is closed, the failure cannot be reported anywhere.
        let _ = writeln!(io::stderr(), "{}: {name}{amount}", self.image);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
