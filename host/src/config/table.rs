// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The documentation's page of settings.

use super::variables::variable_name;

const HEAD: &str = "\
# Configuration

`waggle serve`, `waggle run` and `waggle doctor` take each setting as a flag or as an environment variable; the flag
takes precedence. `waggle image` takes only the settings of the image store. An invalid value is an error at the start.
Durations are written as `30s`, `5m` or `1h30m`. This page is generated from the program.

| variable | flag | default | meaning |
|---|---|---|---|
";

const FOOT: &str = "
Other variables:

- `RUST_LOG`: the log's filter, such as `info,waggle::network=debug`; `info` if unset
- `NO_COLOR`: disables colours
- `REGISTRY_AUTH_FILE`, `DOCKER_CONFIG`: the locations of podman's and docker's credentials for registries
- `SSL_CERT_FILE`: the trusted certificates for pulling images, and for `waggle ps`, `waggle exec` and `waggle logs`
- `HTTPS_PROXY`, `NO_PROXY`: the proxy for pulling images
- `WAGGLE_TOKEN`: the token that `waggle ps`, `waggle exec` and `waggle logs` send to the server in `--url`
";

/// Builds a Markdown page. Its table has a row for each setting of the command, in the order of `--help`.
pub(super) fn page(settings: &clap::Command) -> String {
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

/// Splits a help text into the help and the default. A default that depends on the host is part of the help text.
fn split_default(help: &str) -> (String, String) {
    match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help.to_owned(), "unset".to_owned()),
    }
}
