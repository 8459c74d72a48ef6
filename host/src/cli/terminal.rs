// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a terminal shows besides plain text: colours, and a sign that something is going on. A pipe gets neither.

use std::{
    ffi::OsString,
    fmt,
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Lookup;

/// Between two pictures of a spinner.
const SPINNER_STEP: Duration = Duration::from_millis(100);

/// Colours of the terminal's own palette, by their SGR numbers (ECMA-48).
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Palette {
    coloured: bool,
}

impl Palette {
    /// Colours if the output is a terminal that can, and nobody has said no by `NO_COLOR` (no-color.org).
    pub(super) fn of(output: &impl IsTerminal, variable: Lookup<'_>) -> Self {
        Self { coloured: output.is_terminal() && may_colour(variable) }
    }

    /// The text in a colour, as it is to be printed.
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

/// A line on the terminal that says what is going on, and is gone afterwards.
#[derive(Debug)]
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    /// Shown on stderr if that is a terminal, else nowhere.
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

    /// What is going on now.
    pub(super) fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// Takes the line away for good.
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
    fn colours_are_for_terminals_whose_owner_wants_them() {
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
