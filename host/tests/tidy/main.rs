// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! House rules that neither rustc nor clippy can check. Each failure names the rule that a line breaks.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a check must fail if it cannot read the sources"
)]

mod guarantees;
mod imports;
mod rooms;
mod secrets;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Maximum number of lines of a file. Split a longer file in two; the median file should have a third of the maximum.
const LINES_MAX: usize = 500;

/// Names that say nothing about a file's content.
const NAMES_BANNED: &[&str] =
    &["base", "utils", "util", "common", "helpers", "helper", "misc", "manager", "types", "prelude"];

/// Folders of the host's code: of the server, and of the crates below it.
const HOST: &[&str] = &["host/src/", "host/images/src/", "host/shared/src/"];

const SPDX: [&str; 2] =
    ["SPDX-FileCopyrightText: Copyright 2026 The waggle authors", "SPDX-License-Identifier: Apache-2.0"];

#[test]
fn sources_are_tidy() {
    let mut broken = Vec::new();
    for (name, text) in sources("rs") {
        if text.lines().count() > LINES_MAX {
            broken.push(format!("{name}: more than {LINES_MAX} lines"));
        }
        if !text.lines().nth(2).is_some_and(|line| line.starts_with("//!")) {
            broken.push(format!("{name}: no module doc after the two SPDX lines"));
        }
        if NAMES_BANNED.iter().any(|banned| Path::new(&name).file_stem().is_some_and(|stem| stem == *banned)) {
            broken.push(format!("{name}: the name says nothing about the content"));
        }
    }
    assert_none(&broken);
}

#[test]
fn every_source_names_its_licence() {
    let broken: Vec<_> = tracked()
        .into_iter()
        .filter(|name| {
            let Ok(text) = fs::read_to_string(root().join(name)) else { return false };
            let lines: Vec<_> = text.lines().skip(usize::from(text.starts_with("#!"))).take(2).collect();
            must_name_licence(name, &text)
                && !(lines.len() == 2 && lines.iter().zip(SPDX).all(|(line, tag)| line.ends_with(tag)))
        })
        .map(|name| format!("{name}: the two SPDX lines are missing at the top"))
        .collect();
    assert_none(&broken);
}

/// Whether a file must name its licence. Sources, settings and scripts must; data and formats without comments need
/// not.
fn must_name_licence(name: &str, text: &str) -> bool {
    let named = matches!(extension(name), "rs" | "toml" | "yml" | "yaml" | "sh" | "py" | "mjs" | "js" | "ts" | "ini");
    named || text.starts_with("#!") || name.ends_with("Containerfile") || name.ends_with("requirements.txt")
}

#[track_caller]
fn assert_none(broken: &[String]) {
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Returns the lines without comments and unit tests.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Returns the name and the text of each file with this extension.
fn sources(wanted: &str) -> impl Iterator<Item = (String, String)> {
    tracked().into_iter().filter(move |name| extension(name) == wanted).map(|name| {
        let text = fs::read_to_string(root().join(&name)).unwrap();
        (name, text)
    })
}

fn extension(name: &str) -> &str {
    Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the files that git tracks or would track, as paths from the root. .gitignore excludes build output.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("failed to run git");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}
