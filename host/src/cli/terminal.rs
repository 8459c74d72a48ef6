// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Colours and a spinner, for terminals only.

use std::{
    ffi::OsString,
    fmt,
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Lookup;

/// Interval of the spinner's frames.
const SPINNER_STEP: Duration = Duration::from_millis(100);

/// Text styles and colours of the terminal's own palette, by their SGR numbers (ECMA-48).
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Colours text, or leaves it plain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Palette {
    coloured: bool,
}

impl Palette {
    /// Enables colours if the output is a terminal that supports colours, and `NO_COLOR` is unset or empty
    /// (no-color.org).
    pub(super) fn of(output: &impl IsTerminal, variable: Lookup<'_>) -> Self {
        Self { coloured: output.is_terminal() && may_colour(variable) }
    }

    /// Formats the text in a colour.
    pub(super) fn paint(self, colour: Colour, text: &str) -> impl fmt::Display {
        fmt::from_fn(move |f| match self.coloured {
            true => write!(f, "\x1b[{}m{text}\x1b[0m", colour as u8),
            false => f.write_str(text),
        })
    }
}

fn may_colour(variable: Lookup<'_>) -> bool {
    let is_set = |name| variable(name).is_some_and(|value: OsString| !value.is_empty());
    !is_set("NO_COLOR") && variable("TERM").is_none_or(|term| term != "dumb")
}

/// A line on the terminal that shows the current step and disappears at the end.
#[derive(Debug)]
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    /// Starts a spinner on standard error. The spinner is hidden if standard error is not a terminal.
    pub(super) fn start() -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(SPINNER_STEP);
        Self(bar)
    }

    /// Shows the current step.
    pub(super) fn show(&self, step: &str) {
        self.0.set_message(step.to_owned());
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_need_a_terminal_that_allows_them() {
        let with = |set: &'static str| move |name: &str| (name == set).then(|| OsString::from("1"));
        assert!(may_colour(&with("TERM")));
        assert!(!may_colour(&with("NO_COLOR")));
        assert!(may_colour(&|name| (name == "NO_COLOR").then(OsString::new)));
        assert!(!may_colour(&|name| (name == "TERM").then(|| "dumb".into())));
        let file = tempfile::tempfile().unwrap();
        let plain = Palette::of(&file, &|_| None);
        assert_eq!(plain.paint(Colour::Red, "x").to_string(), "x");
        assert_eq!(Palette { coloured: true }.paint(Colour::Red, "x").to_string(), "\x1b[31mx\x1b[0m");
    }
}
