// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent's build is reproducible: the same sources give the same bytes in any folder and with any cargo
//! home.
//!
//! The second build is kept in `target/reproduced`, so that the next run is quick if the agent's sources have not
//! changed.
#![expect(clippy::unwrap_used, reason = "a check that cannot prepare its second build should stop")]

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// Paths of the built agents, one for each processor architecture.
const AGENTS: [&str; 2] = ["target/agent/waggle-agent", "target/agent/aarch64-unknown-linux-musl/waggle-agent"];

/// Folders and files of the work tree that cargo needs for the agent.
const SOURCES: [&str; 6] = [".cargo", "Cargo.lock", "Cargo.toml", "guest-agent", "host", "protocol"];

#[test]
fn agent_has_the_same_bytes_in_every_folder_and_cargo_home() {
    let first = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| env::home_dir().unwrap().join(".cargo"), PathBuf::from);
    let second = first.join("target/reproduced/tree");
    let second_home = first.join("target/reproduced/cargo home");
    copy_sources(first, &second);
    share_registry(&cargo_home, &second_home);
    build(first, &cargo_home);
    build(&second, &second_home);
    for agent in AGENTS {
        let [one, other] = [first, &second].map(|tree| fs::read(tree.join(agent)).unwrap());
        assert!(one == other, "{agent} in {} differs from the one in {}", first.display(), second.display());
    }
}

/// Replaces the sources in `to` with those in `from`. The copies keep their modification times, so cargo builds only
/// what has changed.
fn copy_sources(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for source in SOURCES {
        run(Command::new("rm").args(["-rf", source]).current_dir(to));
    }
    let listed = "git ls-files -z --cached --others --exclude-standard -- \"$@\"";
    let copy = format!("{listed} | tar --create --null --files-from=- | tar --extract --directory=\"$0\"");
    run(Command::new("sh").args(["-c", &copy]).arg(to).args(SOURCES).current_dir(from));
}

/// Links the settings and downloads of the cargo home `from` into the cargo home `to`.
fn share_registry(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["config.toml", "registry"] {
        let link = to.join(name);
        if from.join(name).exists() && !link.exists() {
            symlink(from.join(name), link).unwrap();
        }
    }
}

fn build(tree: &Path, cargo_home: &Path) {
    run(Command::new("guest-agent/build-static").current_dir(tree).env("CARGO_HOME", cargo_home));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
