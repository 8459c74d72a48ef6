// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Looks at the host's processes, and for the programs that machines need.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Pid;

/// A start, or an end, that takes longer has failed.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(20);

/// The processes whose working folder is in `folder`, by the kernel's name for them, which has 15 letters.
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

/// The one process of a name, which may be longer than the kernel keeps.
pub(crate) fn named(processes: &[(String, Pid)], name: &str) -> Pid {
    let kept: String = name.chars().take(15).collect();
    processes.iter().find(|(found, _)| *found == kept).map(|(_, pid)| *pid).unwrap()
}

/// Searches a program in `PATH` and where the tasks put what they install.
pub(crate) fn program(name: &str, how: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let search = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&search).chain([built]).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; `{how}` installs it"))
}

/// QEMU.
pub(crate) fn qemu() -> PathBuf {
    program("qemu-system-x86_64", "apt-get install qemu-system-x86")
}

/// The virtual socket device.
pub(crate) fn vhost_device_vsock() -> PathBuf {
    program("vhost-device-vsock", "./taskw setup")
}

/// Waits for something that tells nobody when it happens: another process's end, a file's removal.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
