// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tells the compiler where the guest agent is, which `infra::agent_binary` embeds, and what `waggle version` prints.
//!
//! It does not build the agent: that is a static binary with a profile and a target folder of its own (`./taskw agent`).
//! Without it an empty file is embedded, so that a plain `cargo build` or `cargo test` works on a fresh clone.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let agent = agent_file()?;
    println!("cargo::rustc-env=WAGGLE_AGENT_FILE={}", agent.display());

    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Git writes this log with each commit. A build for development need not be made again for that.
    let log = answer("git", &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|_| env::var("PROFILE").is_ok_and(|profile| profile == "release")) {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = answer("git", &["rev-parse", "--short=12", "HEAD"]);
    println!("cargo::rustc-env=WAGGLE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let at = env::var("SOURCE_DATE_EPOCH").map_or_else(|_| "now".to_owned(), |seconds| format!("@{seconds}"));
    let date = answer("date", &["--utc", "--date", &at, "+%Y-%m-%d"]);
    println!("cargo::rustc-env=WAGGLE_BUILD_DATE={}", date.as_deref().unwrap_or("unknown"));
    Ok(())
}

/// The agent to embed: `WAGGLE_AGENT` (relative to the workspace), else `target/agent/waggle-agent`, else an empty file.
fn agent_file() -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WAGGLE_AGENT");
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    if let Some(chosen) = env::var_os("WAGGLE_AGENT") {
        let chosen = workspace.join(chosen);
        if !chosen.is_file() {
            return Err(format!("WAGGLE_AGENT names {}, which is not a file", chosen.display()).into());
        }
        println!("cargo::rerun-if-changed={}", chosen.display());
        return Ok(chosen);
    }
    let folder = workspace.join("target/agent");
    let built = folder.join("waggle-agent");
    if built.is_file() {
        println!("cargo::rerun-if-changed={}", built.display());
        return Ok(built);
    }
    // Cargo takes a watched path that does not exist for one that always changes, so watch a folder that does.
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let empty = PathBuf::from(env::var("OUT_DIR")?).join("no-agent");
    fs::write(&empty, [])?;
    Ok(empty)
}

/// What a command printed, or nothing where it is missing or fails: a source archive has no git.
fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
