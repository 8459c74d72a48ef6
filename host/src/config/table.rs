// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The page of settings for the documentation.

use clap::Args as _;

use super::{Settings, variable_name};

const HEAD: &str = "\
# Configuration

`waggle serve` takes each setting as a flag or as an environment variable; the flag wins. An invalid value stops the
start with a message. `RUST_LOG` chooses what is logged. Durations are written as `30s`, `5m` or `1h30m`. This page is
generated from the program.

| variable | flag | default | what it is |
|---|---|---|---|
";

/// The settings as a Markdown page: a table with one row each, in the order of `--help`.
#[must_use]
pub fn settings_page() -> String {
    let settings = Settings::augment_args(clap::Command::new("serve"));
    let rows = settings.get_arguments().filter_map(|argument| {
        let flag = argument.get_long()?;
        let (help, default) = split_default(&argument.get_help()?.to_string());
        let set: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if set.is_empty() { default } else { format!("`{}`", set.join(" ")) };
        let variable = variable_name(argument.get_id().as_str());
        Some(format!("| `{variable}` | `--{flag}` | {default} | {help} |\n"))
    });
    std::iter::once(HEAD.to_owned()).chain(rows).collect()
}

/// A default that depends on where the server runs stands in the help.
fn split_default(help: &str) -> (String, String) {
    match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help.to_owned(), "unset".to_owned()),
    }
}
