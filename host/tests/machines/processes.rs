// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the host's processes, and the programs that machines need.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Pid;

/// Timeout for the start or the end of a process.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(20);

/// The processes whose working folder is in `folder`, with their names. The kernel cuts each name to 15 bytes.
pub(crate) fn working_in(folder: &Path) -> Vec<(String, Pid)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if fs::read_link(entry.path().join("cwd")).is_ok_and(|works_in| works_in.starts_with(folder)) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((name.trim().to_owned(), pid));
        }
    }
    found
}

/// The process with this name. `name` may be longer than 15 bytes.
pub(crate) fn named(processes: &[(String, Pid)], name: &str) -> Pid {
    let cut: String = name.chars().take(15).collect();
    processes.iter().find(|(found, _)| *found == cut).map(|(_, pid)| *pid).unwrap()
}

/// Looks for a program in `PATH` and in the folder into which `./taskw` installs programs.
pub(crate) fn program(name: &str, how: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let search = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&search).chain([built]).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; `{how}` installs it"))
}

pub(crate) fn qemu() -> PathBuf {
    program("qemu-system-x86_64", "apt-get install qemu-system-x86")
}

/// Polls until `done` returns true. For events without a notification, such as the end of another process or the
/// removal of a file.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
