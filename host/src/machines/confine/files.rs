// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits a process to its files by Landlock, which needs no namespaces. It also keeps the process from opening the
//! memory of other processes, from signalling them, and from connecting to Unix sockets other than those of its links.
//!
//! The kernel may lack Landlock, or some of its access rights; the other restrictions still apply then. What each
//! version of Landlock restricts is in <https://docs.kernel.org/userspace-api/landlock.html>.

use std::{error::Error, io, path::Path};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};

use super::RootFiles;

/// The newest version of Landlock whose access rights are restricted, where the kernel knows them.
const NEWEST: ABI = ABI::V9;

/// Whether the kernel's Landlock restricts which files a process opens.
pub(crate) fn restricts_files() -> bool {
    restricts(AccessFs::from_all(ABI::V1))
}

/// Whether the kernel's Landlock restricts to which Unix sockets a process connects: from Linux 7.1 on.
pub(crate) fn restricts_connections() -> bool {
    restricts(AccessFs::ResolveUnix)
}

fn restricts(access: impl Into<BitFlags<AccessFs>>) -> bool {
    let required = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    required.handle_access(access.into()).and_then(Ruleset::create).is_ok()
}

/// Restricts this process permanently to `files`, as far as the kernel can.
///
/// # Errors
/// A file cannot be opened, or the kernel's error.
pub(super) fn restrict(files: &RootFiles) -> io::Result<()> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create);
    let mut rules = ruleset.map_err(other)?;
    let read = AccessFs::from_read(NEWEST);
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    // The links' sockets are in the folder.
    rules = allow(rules, &files.folder, AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::ResolveUnix)?;
    for file in &files.writable {
        rules = allow(rules, &files.folder.join(file), write)?;
    }
    for path in &files.read_only {
        rules = allow(rules, path, read)?;
    }
    for device in &files.devices {
        rules = allow(rules, Path::new(device), write | AccessFs::IoctlDev)?;
    }
    rules.restrict_self().map_err(other)?;
    Ok(())
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    if !path.exists() {
        return Ok(rules);
    }
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    let file = PathFd::new(path).map_err(other)?;
    rules.add_rule(PathBeneath::new(file, access)).map_err(other)
}

fn other(fault: impl Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(fault)
}
