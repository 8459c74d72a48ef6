// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The parser of one package. Each method parses one part of the grammar at the start of the text, and appends it to
//! the package's normal form; it returns `None` if the part is missing or invalid.

use super::is_file;

/// The maximum number of characters of an operator, such as `>=`.
const OPERATOR_CHARS_MAX: usize = 2;

/// npm's prefix of a package that is installed under another name.
const ALIAS: &str = "npm:";

pub(super) struct Parser<'a> {
    rest: &'a str,
    /// The part of the package that has been parsed, in its normal form.
    parsed: String,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, parsed: String::new() }
    }

    /// Returns the text that has not been parsed.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Parses a text between two quotes.
    pub(super) fn quoted(&mut self, quote: char) -> Option<&'a str> {
        let (inner, rest) = self.rest.strip_prefix(quote)?.split_once(quote)?;
        self.rest = rest;
        Some(inner)
    }

    /// Parses a package, and returns its normal form.
    pub(super) fn package(&mut self) -> Option<String> {
        if self.rest.starts_with('@') {
            self.npm_name()?;
            self.npm_version()?;
        } else {
            self.name()?;
            if self.rest.starts_with('@') {
                self.npm_version()?;
            } else {
                self.extras()?;
                self.versions()?;
            }
        }
        Some(std::mem::take(&mut self.parsed))
    }

    /// Parses a name, with or without a scope.
    fn npm_name(&mut self) -> Option<()> {
        if self.take("@") {
            self.name()?;
            self.take("/").then_some(())?;
        }
        self.name()
    }

    /// Parses what npm installs of a package: nothing, a range of versions, a tag, or another package.
    fn npm_version(&mut self) -> Option<()> {
        if !self.take("@") {
            return Some(());
        }
        if self.take(ALIAS) {
            self.npm_name()?;
            return if self.take("@") { self.range() } else { Some(()) };
        }
        self.range()
    }

    fn range(&mut self) -> Option<()> {
        loop {
            self.operator(is_range_operator);
            self.version()?;
            while self.next_begins_with(is_range_operator) {
                self.parsed.push(' ');
                self.operator(is_range_operator)?;
                self.version()?;
            }
            let rest = self.rest.trim_start();
            if !rest.starts_with("||") {
                return Some(());
            }
            self.rest = rest;
            self.take("||");
            self.rest = self.rest.trim_start();
        }
    }

    fn extras(&mut self) -> Option<()> {
        if !self.take("[") {
            return Some(());
        }
        loop {
            self.rest = self.rest.trim_start();
            self.name()?;
            self.rest = self.rest.trim_start();
            if !self.take(",") {
                return self.take("]").then_some(());
            }
        }
    }

    fn versions(&mut self) -> Option<()> {
        let mut is_first = true;
        while self.next_begins_with(is_operator) {
            if !is_first {
                self.parsed.push(',');
            }
            is_first = false;
            self.operator(is_operator)?;
            self.version()?;
        }
        Some(())
    }

    /// Skips blanks, and a comma between them, if an operator follows.
    fn next_begins_with(&mut self, is_operator: fn(char) -> bool) -> bool {
        let rest = self.rest.trim_start();
        let rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        let follows = rest.starts_with(is_operator);
        if follows {
            self.rest = rest;
        }
        follows
    }

    /// Parses an operator and the blanks behind it.
    fn operator(&mut self, is_operator: fn(char) -> bool) -> Option<()> {
        let rest = self.rest.trim_start_matches(is_operator);
        let (operator, _) = self.rest.split_at(self.rest.len() - rest.len());
        if !(1..=OPERATOR_CHARS_MAX).contains(&operator.len()) {
            return None;
        }
        self.parsed.push_str(operator);
        self.rest = rest.trim_start();
        Some(())
    }

    fn name(&mut self) -> Option<()> {
        self.word(|c| c.is_ascii_alphanumeric(), |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
    }

    fn version(&mut self) -> Option<()> {
        self.word(
            |c| c.is_ascii_alphanumeric() || c == '*',
            |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '*'),
        )
    }

    fn word(&mut self, is_first: fn(char) -> bool, is_further: fn(char) -> bool) -> Option<()> {
        let rest = self.rest.strip_prefix(is_first)?.trim_start_matches(is_further);
        let (word, _) = self.rest.split_at(self.rest.len() - rest.len());
        // For apt-get, a hyphen at the end removes the package.
        if is_file(word) || word.ends_with('-') {
            return None;
        }
        self.parsed.push_str(word);
        self.rest = rest;
        Some(())
    }

    fn take(&mut self, text: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(text) else { return false };
        self.parsed.push_str(text);
        self.rest = rest;
        true
    }
}

fn is_operator(c: char) -> bool {
    matches!(c, '>' | '<' | '=' | '!' | '~')
}

fn is_range_operator(c: char) -> bool {
    is_operator(c) && c != '!' || c == '^'
}
