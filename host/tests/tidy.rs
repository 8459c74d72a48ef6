// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! House rules that neither rustc nor clippy can state. Each failure names the rule it breaks.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a check that cannot read the tree should stop")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// More than that is two files; the median is meant to be a third of it.
const LINES_MAX: usize = 500;

/// rustfmt's `max_width`, which it does not hold comments to.
const COLUMNS_MAX: usize = 120;

/// Names that say nothing about what is in the file.
const NAMES_BANNED: &[&str] =
    &["base", "utils", "util", "common", "helpers", "helper", "misc", "manager", "types", "prelude"];

const SPDX: [&str; 2] =
    ["SPDX-FileCopyrightText: Copyright 2026 The waggle authors", "SPDX-License-Identifier: Apache-2.0"];

/// Names of fields and variants that hold secrets.
const SECRET_NAMES: &[&str] = &["password", "secret", "token", "authorization", "credentials"];

/// A layer, and what its code must not mention. Imports point one way: mcp, http -> service -> domain; and machines ->
/// images, network, agent -> files.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "host/src/domain",
        &[
            "crate::machines",
            "crate::images",
            "crate::network",
            "crate::agent",
            "crate::files",
            "crate::service",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "tokio::",
            "tracing::",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "async fn",
            "Instant::now",
            "SystemTime::now",
        ],
    ),
    ("host/src/machines", &["crate::service", "crate::mcp", "crate::http", "crate::config", "crate::cli"]),
    (
        "host/src/images",
        &[
            "crate::service",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "crate::cli",
            "crate::machines",
            "crate::network",
            "crate::agent",
        ],
    ),
    (
        "host/src/network",
        &[
            "crate::service",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "crate::cli",
            "crate::machines",
            "crate::images",
            "crate::agent",
        ],
    ),
    (
        "host/src/agent",
        &[
            "crate::service",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "crate::cli",
            "crate::machines",
            "crate::images",
            "crate::network",
        ],
    ),
    (
        "host/src/files",
        &[
            "crate::service",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "crate::cli",
            "crate::machines",
            "crate::images",
            "crate::network",
            "crate::agent",
        ],
    ),
    (
        "host/src/service",
        &[
            "crate::machines",
            "crate::images",
            "crate::network",
            "crate::agent",
            "crate::files",
            "crate::mcp",
            "crate::http",
            "crate::config",
            "crate::cli",
        ],
    ),
    ("protocol/src", &["tokio::", "std::io", "std::net", "std::fs"]),
];

/// A word, and the only places below `host/src` whose code may mention it.
const PLACES: &[(&str, &[&str])] = &[
    ("waggle_protocol::", &["host/src/machines", "host/src/network", "host/src/agent"]),
    ("waggle_link::", &["host/src/machines", "host/src/network", "host/src/agent"]),
    ("rmcp::", &["host/src/mcp"]),
    ("axum::", &["host/src/http"]),
];

#[test]
fn sources_are_tidy() {
    let mut broken = Vec::new();
    for name in tracked().into_iter().filter(|name| extension(name) == "rs") {
        let text = fs::read_to_string(root().join(&name)).unwrap();
        if text.lines().count() > LINES_MAX {
            broken.push(format!("{name}: more than {LINES_MAX} lines"));
        }
        if !text.lines().nth(2).is_some_and(|line| line.starts_with("//!")) {
            broken.push(format!("{name}: no module doc after the two SPDX lines"));
        }
        if NAMES_BANNED.iter().any(|banned| Path::new(&name).file_stem().is_some_and(|stem| stem == *banned)) {
            broken.push(format!("{name}: a name that says nothing"));
        }
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim_start().starts_with("//") && line.chars().count() > COLUMNS_MAX {
                broken.push(format!("{name}:{number}: a comment of more than {COLUMNS_MAX} columns"));
            }
        }
        broken.extend(out_of_place(&name, &text));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A field or variant that is named like a secret has the type that hides it in errors and logs.
#[test]
fn secrets_have_their_type() {
    let broken: Vec<_> = tracked()
        .into_iter()
        .filter(|name| name.starts_with("host/src/") && extension(name) == "rs")
        .flat_map(|name| {
            bare_secrets(&fs::read_to_string(root().join(&name)).unwrap())
                .map(move |line| format!("{name}: {line}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "secrets that must be a SecretString:\n{}", broken.join("\n"));
}

#[test]
fn the_check_of_secrets_sees_a_bare_one() {
    let text = "struct S {\n    password: Option<String>,\n    realm: String,\n    pub token: SecretString,\n}\nToken(String),\n";
    assert_eq!(bare_secrets(text).collect::<Vec<_>>(), ["password: Option<String>,", "Token(String),"]);
}

fn bare_secrets(text: &str) -> impl Iterator<Item = &str> {
    let is_secret = |line: &str| {
        let (name, kind) = line.split_once([':', '('])?;
        let name = name.trim_start_matches("pub ").to_lowercase();
        let named = SECRET_NAMES.iter().any(|secret| name.ends_with(secret)) && !name.contains(' ');
        Some(named && ["String", "Option<String>"].contains(&kind.trim().trim_end_matches([',', ')'])))
    };
    text.lines().map(str::trim).filter(move |line| is_secret(line) == Some(true))
}

#[test]
fn every_source_says_its_licence() {
    let broken: Vec<_> = tracked()
        .into_iter()
        .filter(|name| {
            let Ok(text) = fs::read_to_string(root().join(name)) else { return false };
            let lines: Vec<_> = text.lines().skip(usize::from(text.starts_with("#!"))).take(2).collect();
            bears_licence(name, &text)
                && !(lines.len() == 2 && lines.iter().zip(SPDX).all(|(line, tag)| line.ends_with(tag)))
        })
        .collect();
    assert!(broken.is_empty(), "without the two SPDX lines on top:\n{}", broken.join("\n"));
}

/// Every guarantee in docs/guarantees.md names the test that holds it, and that test exists.
#[test]
fn guarantees_are_tested() {
    let doc = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let sources: String = tracked()
        .iter()
        .filter(|name| matches!(extension(name), "rs" | "py"))
        .map(|name| fs::read_to_string(root().join(name)).unwrap())
        .collect();
    for line in doc.lines().filter(|line| line.starts_with("- ")) {
        let (_, test) = line.rsplit_once("`test: ").unwrap_or_else(|| panic!("no test named: {line}"));
        let test = test.trim_end_matches(['`', '.']);
        let exists = sources.contains(&format!("fn {test}(")) || sources.contains(&format!("def {test}("));
        assert!(exists, "no such test: {test}");
    }
}

#[test]
fn the_check_of_layers_sees_a_break() {
    let text = "use crate::machines::disks;\n// use rmcp::x\nlet now = axum::serve(\"rmcp::y\");\n#[cfg(test)]\nmod tests { tokio::spawn }\n";
    assert_eq!(
        out_of_place("host/src/domain/environment.rs", text),
        [
            "host/src/domain/environment.rs: host/src/domain must not mention crate::machines",
            "host/src/domain/environment.rs: axum:: belongs in host/src/http",
        ]
    );
}

fn out_of_place(name: &str, text: &str) -> Vec<String> {
    let mentions = |word: &str| code(text).any(|code| code.contains(word));
    let mut broken = Vec::new();
    for (layer, banned) in LAYERS.iter().filter(|(layer, _)| name.starts_with(layer)) {
        broken.extend(
            banned.iter().filter(|word| mentions(word)).map(|word| format!("{name}: {layer} must not mention {word}")),
        );
    }
    for (word, places) in PLACES {
        let may = !name.starts_with("host/src/") || places.iter().any(|place| name.starts_with(place));
        if !may && mentions(word) {
            broken.push(format!("{name}: {word} belongs in {}", places.join(", ")));
        }
    }
    broken
}

/// What is compiled into the product: neither comments, nor what is in quotes, nor the unit tests at a file's end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    code_lines(text).flat_map(|line| line.split('"').step_by(2))
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Sources, settings and scripts; not data, not what a tool writes, not formats without comments.
fn bears_licence(name: &str, text: &str) -> bool {
    let named = matches!(extension(name), "rs" | "toml" | "yml" | "yaml" | "sh" | "py" | "mjs" | "js" | "ts" | "ini");
    named || text.starts_with("#!") || name.ends_with("Containerfile") || name.ends_with("requirements.txt")
}

fn extension(name: &str) -> &str {
    Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What git keeps or would keep, by its path from the root: build output is left out by .gitignore.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git, to list the sources");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}
