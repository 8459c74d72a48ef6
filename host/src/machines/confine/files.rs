// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits a process to its files by Landlock, which needs no namespaces. It also keeps the process from opening the
//! memory of other processes, from signalling them, and from connecting to abstract Unix sockets.
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
const NEWEST: ABI = ABI::V6;

/// Whether the kernel has Landlock.
pub(crate) fn has_landlock() -> bool {
    let required = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    required.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
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
    rules = allow(rules, &files.folder, AccessFs::ReadFile | AccessFs::ReadDir)?;
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
