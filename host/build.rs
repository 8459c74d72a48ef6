// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the guest agent and the firmware to embed, and the commit and the build date for `waggle version`.
//!
//! The script does not build the agent; `./taskw agent` does. If the agent is missing, the script embeds an empty file,
//! so `cargo build` and `cargo test` work on a fresh clone. The script embeds libkrunfw (21 MB) only if
//! `WAGGLE_EMBED_FIRMWARE` is set to its path.

use std::{env, error::Error, ffi::OsStr, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let agent = agent_file()?;
    println!("cargo::rustc-env=WAGGLE_AGENT_FILE={}", agent.display());
    firmware()?;

    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Git changes this log with each commit. Only release builds rerun the script for each commit.
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

/// The agent to embed: `WAGGLE_AGENT` (relative to the workspace), else `target/agent/waggle-agent`, else an empty
/// file.
fn agent_file() -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WAGGLE_AGENT");
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    if let Some(chosen) = env::var_os("WAGGLE_AGENT") {
        let chosen = workspace.join(chosen);
        if !chosen.is_file() {
            return Err(format!("WAGGLE_AGENT must name a file, not {}", chosen.display()).into());
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
    // Cargo treats a missing watched path as always changed, so watch the folder.
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let empty = PathBuf::from(env::var("OUT_DIR")?).join("no-agent");
    fs::write(&empty, [])?;
    Ok(empty)
}

/// Compresses the firmware to embed. `WAGGLE_EMBED_FIRMWARE` is the path of the file or its folder, relative to the
/// workspace.
fn firmware() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WAGGLE_EMBED_FIRMWARE");
    let packed = PathBuf::from(env::var("OUT_DIR")?).join("firmware.gz");
    let chosen = env::var_os("WAGGLE_EMBED_FIRMWARE").filter(|chosen| !chosen.is_empty());
    let (mut name, mut sha256, mut bytes) = (String::new(), String::new(), 0);
    match chosen {
        None => fs::write(&packed, [])?,
        Some(chosen) => {
            let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
            let library = library(workspace.join(chosen))?;
            println!("cargo::rerun-if-changed={}", library.display());
            let content = fs::read(&library)?;
            bytes = content.len();
            name =
                library.file_name().and_then(OsStr::to_str).ok_or("the name of the firmware must be UTF-8")?.to_owned();
            let path = library.to_str().ok_or("the path of the firmware must be UTF-8")?;
            let digest = answer("sha256sum", &[path]).ok_or("failed to run sha256sum; install coreutils")?;
            sha256 = digest.split(' ').next().unwrap_or_default().to_owned();
            let gzip = Command::new("gzip").args(["--best", "--no-name", "--stdout", path]).output()?;
            if !gzip.status.success() {
                return Err(format!("gzip {path}: {}", String::from_utf8_lossy(&gzip.stderr)).into());
            }
            fs::write(&packed, gzip.stdout)?;
        }
    }
    println!("cargo::rustc-env=WAGGLE_FIRMWARE_FILE={}", packed.display());
    println!("cargo::rustc-env=WAGGLE_FIRMWARE_NAME={name}");
    println!("cargo::rustc-env=WAGGLE_FIRMWARE_SHA256={sha256}");
    println!("cargo::rustc-env=WAGGLE_FIRMWARE_BYTES={bytes}");
    Ok(())
}

/// Returns `path` if it is a file, or the firmware's library in the folder `path`.
fn library(path: PathBuf) -> Result<PathBuf, Box<dyn Error>> {
    if !path.is_dir() {
        return Ok(path);
    }
    let mut entries = fs::read_dir(&path)?.flatten().map(|entry| entry.path());
    let is_library =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libkrunfw.so.5"));
    entries.find(is_library).ok_or_else(|| format!("found no libkrunfw.so.5 in {}", path.display()).into())
}

/// Returns the output of a command, or `None` if the command is missing or fails. For example, git fails in a source
/// archive.
fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
