// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The page of settings for the documentation.

use clap::Args as _;

use super::{Settings, variable_name};

const HEAD: &str = "\
# Configuration

`waggle serve` takes each setting as a flag or as an environment variable; the flag wins. So do `waggle run` and `waggle
doctor`; `waggle image` takes those about images. An invalid value stops the start with a message. Durations are written as
`30s`, `5m` or `1h30m`. This page is generated from the program.

| variable | flag | default | what it is |
|---|---|---|---|
";

const FOOT: &str = "
Other variables that count:

- `RUST_LOG`: what is logged, as `info,waggle::egress=debug`; `info` if unset
- `NO_COLOR`: no colours, whatever the terminal
- `REGISTRY_AUTH_FILE`, `DOCKER_CONFIG`: where podman and docker keep the credentials of registries
- `SSL_CERT_FILE`, `HTTPS_PROXY`, `NO_PROXY`: which certificates are trusted and which proxy is asked where images are pulled
- `WAGGLE_TOKEN`: the token that `waggle ps`, `exec` and `logs` send; their `--url` names another server than this machine's
";

/// The settings as a Markdown page: a table with one row each, in the order of `--help`.
#[must_use]
pub fn settings_page() -> String {
    let settings = Settings::augment_args(clap::Command::new("serve"));
    let rows = settings.get_arguments().filter_map(|argument| {
        let flag = argument.get_long()?;
        let (help, default) = split_default(&argument.get_help()?.to_string());
        let set: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = match set.join(" ") {
            _ if set.is_empty() => default,
            empty if empty.is_empty() => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let variable = variable_name(argument.get_id().as_str());
        Some(format!("| `{variable}` | `--{flag}` | {default} | {help} |\n"))
    });
    std::iter::once(HEAD.to_owned()).chain(rows).chain([FOOT.to_owned()]).collect()
}

/// A default that depends on where the server runs stands in the help.
fn split_default(help: &str) -> (String, String) {
    match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help.to_owned(), "unset".to_owned()),
    }
}
