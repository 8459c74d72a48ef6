// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Paths of programs and images that `./taskw` prepares, and the processes of running machines.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use waggle_images::reference::ImageRef;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Finds a program in `PATH` or among those that `./taskw` installs.
pub(crate) fn program(name: &str) -> PathBuf {
    let search = env::var_os("PATH").unwrap_or_default();
    let installed = [root().join("target/tools/bin"), "/usr/sbin".into()];
    let found = env::split_paths(&search).chain(installed).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; `./taskw bench` installs it"))
}

/// The folder of libkrunfw, which contains the guests' kernel.
pub(crate) fn firmware() -> PathBuf {
    root().join("target/firmware")
}

/// The reference of an image that `./taskw` builds.
pub(crate) fn image(name: &str) -> ImageRef {
    format!("oci:{}", root().join("target/images").join(name).display()).parse().unwrap()
}

/// Builds an example of the guest agent as a static program.
pub(crate) fn static_example(name: &str) -> Vec<u8> {
    let built =
        Command::new("guest-agent/build-static").args(["--example", name]).current_dir(root()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::read(root().join(String::from_utf8(built.stdout).unwrap().trim())).unwrap()
}

/// Finds the QEMU process whose working folder is `folder` or a folder below it. Returns the process's command line and
/// working folder.
pub(crate) fn qemu_in(folder: &Path) -> (Vec<String>, PathBuf) {
    let folder = folder.canonicalize().unwrap();
    let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let qemu = processes.find(|process| {
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("qemu-system"))
            && fs::read_link(process.join("cwd")).is_ok_and(|works_in| works_in.starts_with(&folder))
    });
    let qemu = qemu.unwrap();
    let line = fs::read_to_string(qemu.join("cmdline")).unwrap();
    let words = line.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    (words, fs::read_link(qemu.join("cwd")).unwrap())
}
