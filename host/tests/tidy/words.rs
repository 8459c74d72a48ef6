// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Rules for the width of lines, for the first words of doc comments, and for test names.

use super::{assert_none, sources};

/// rustfmt's `max_width`, which rustfmt does not apply to comments and strings.
const COLUMNS_MAX: usize = 120;

/// Maximum width of a line in a Markdown document.
const MARKDOWN_COLUMNS_MAX: usize = 130;

/// Forbidden first words of a doc comment: they leave its subject open.
const OPENINGS_BANNED: &[&str] = &["What ", "Who ", "Whose ", "Which ", "How ", "So many ", "As many "];

#[test]
fn sources_are_worded_plainly() {
    let broken: Vec<_> = sources("rs").chain(sources("py")).flat_map(|(name, text)| faults(&name, &text)).collect();
    assert_none(&broken);
}

/// Tables, links, and a guarantee with the name of its test cannot be wrapped.
#[test]
fn documents_are_wrapped() {
    let mut broken = Vec::new();
    for (name, text) in sources("md") {
        let mut in_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            in_code ^= line.starts_with("```");
            let may_be_long = in_code || line.starts_with('|') || line.contains("`test: ") || line.contains("](");
            if line.chars().count() > MARKDOWN_COLUMNS_MAX && !may_be_long {
                broken.push(format!("{name}:{number}: more than {MARKDOWN_COLUMNS_MAX} columns"));
            }
        }
    }
    assert_none(&broken);
}

/// Finds lines of Rust that are too wide, doc comments that open with a question word, and names with a possessive
/// `_s_`.
fn faults(name: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut add = |rule: &str| broken.push(format!("{name}:{number}: {rule}"));
        if name.ends_with(".rs") && line.chars().count() > COLUMNS_MAX {
            add("the line is too wide");
        }
        let code = line.trim_start();
        let doc = code.strip_prefix("/// ").or_else(|| code.strip_prefix("//! ")).unwrap_or_default();
        if OPENINGS_BANNED.iter().any(|opening| doc.starts_with(opening)) {
            add("a doc comment must open with a noun or a verb in the third person");
        }
        let code = code.trim_start_matches("async ");
        let function = code.strip_prefix("fn ").or_else(|| code.strip_prefix("def test"));
        if function.is_some_and(|function| function.split('(').next().is_some_and(|name| name.contains("_s_"))) {
            add("a name must not have a possessive `_s_`");
        }
    }
    broken
}

#[test]
fn bad_wording_is_found() {
    let text = format!("//! What this is.\n/// A fact.\nfn a_caller_s_limit() {{}}\n// {}\n", "x".repeat(118));
    assert_eq!(
        faults("a.rs", &text),
        [
            "a.rs:1: a doc comment must open with a noun or a verb in the third person",
            "a.rs:3: a name must not have a possessive `_s_`",
            "a.rs:4: the line is too wide",
        ]
    );
}
