// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes a whole file, or appends to one.
//!
//! A file is replaced in one step: the bytes are written to a temporary file in the same folder, which is then renamed
//! to the file's name. If the write fails, for example because the disk is full or the host is lost, the file keeps its
//! old content. Links are followed first. Mode, owner and group are preserved; access control lists and extended
//! attributes are not. The file is written in place if it has another owner or several hard links, or if no file can be
//! created in its folder.

use std::{
    fs::{File, Metadata, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use nix::{
    fcntl::OFlag,
    sys::stat::Mode,
    unistd::{getegid, geteuid},
};
use waggle_protocol::{Fault, FaultKind, Reply};

use super::{
    path::{FileRoot, FolderEntry, TargetPath},
    wire::Wire,
};
use crate::fault::{check_input, fault, fault_of};

const NEW_FILE_MODE: u32 = 0o644;

#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) bytes: u64,
    pub(super) mode: Option<u32>,
    pub(super) append: bool,
}

/// Writes the call's input to the file. Creates the file and its parent folders if they are missing.
pub(super) fn file(wire: &mut Wire, root: &FileRoot, path: &str, options: Options) -> Result<Reply<'static>, Fault> {
    let target = TargetPath::new(root, path);
    if target.ends_without_a_name() {
        let why = "the path names a folder; must end with the name of a file";
        return Err(fault(FaultKind::IsDirectory, format!("failed to write {}: {why}", target.named())));
    }
    target.make_parents().map_err(|source| failed(&target, &source))?;
    let old = existing(&target)?;
    let mode = options.mode.map(|mode| mode & 0o7777);
    let entry = if options.append { None } else { replaceable(&target, old.as_ref()) };
    let Some(entry) = entry else { return in_place(wire, &target, options, mode) };
    let (temporary, name) = match entry.temporary() {
        Ok(created) => created,
        // The folder allows no new file, but the existing file is writable.
        Err(source) if old.is_some() && is_denied(&source) => return in_place(wire, &target, options, mode),
        Err(source) => return Err(failed(&target, &source)),
    };
    let filled = fill(wire, &temporary, options.bytes, &target).and_then(|()| {
        let kept = old.as_ref().map_or(NEW_FILE_MODE, |meta| meta.mode() & 0o7777);
        let permissions = Permissions::from_mode(mode.unwrap_or(kept));
        let renamed = temporary.set_permissions(permissions).and_then(|()| entry.replace_with(&name));
        renamed.map_err(|source| failed(&target, &source))
    });
    if filled.is_err() {
        entry.remove(&name);
    }
    filled?;
    Ok(Reply::Written { bytes: options.bytes })
}

fn failed(target: &TargetPath, source: &io::Error) -> Fault {
    fault_of(source, &format!("failed to write {}", target.named()))
}

fn not_regular(target: &TargetPath) -> Fault {
    fault(FaultKind::NotRegular, format!("failed to write {}: it is not a regular file", target.named()))
}

/// Checks that the file is regular and writable, and returns its metadata; `None` if it does not exist.
fn existing(target: &TargetPath) -> Result<Option<Metadata>, Fault> {
    match target.open(OFlag::O_WRONLY, Mode::empty()) {
        Ok(file) => {
            let meta = file.metadata().map_err(|source| failed(target, &source))?;
            if meta.is_file() { Ok(Some(meta)) } else { Err(not_regular(target)) }
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        // A running program can be replaced but not written. The kernel checks the file's permissions before it reports
        // that the file is busy.
        Err(source) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
            target.metadata().map(Some).map_err(|source| failed(target, &source))
        }
        // The path is a pipe without a reader, or a socket.
        Err(source) if source.raw_os_error() == Some(nix::libc::ENXIO) => Err(not_regular(target)),
        Err(source) => Err(failed(target, &source)),
    }
}

/// Returns the folder entry to replace; `None` if a replacement would change the owner or break a hard link.
fn replaceable(target: &TargetPath, old: Option<&Metadata>) -> Option<FolderEntry> {
    match old {
        Some(meta) if meta.nlink() > 1 => None,
        Some(meta) if (meta.uid(), meta.gid()) != (geteuid().as_raw(), getegid().as_raw()) => None,
        Some(_) => target.existing_entry().ok(),
        None => target.new_entry().ok(),
    }
}

fn is_denied(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn in_place(
    wire: &mut Wire,
    target: &TargetPath,
    options: Options,
    mode: Option<u32>,
) -> Result<Reply<'static>, Fault> {
    let failed = |source: io::Error| failed(target, &source);
    let flags = if options.append { OFlag::O_APPEND } else { OFlag::empty() };
    let new = Mode::from_bits_truncate(mode.unwrap_or(NEW_FILE_MODE));
    let file = target.open(OFlag::O_WRONLY | OFlag::O_CREAT | flags, new).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(not_regular(target));
    }
    if !options.append {
        file.set_len(0).map_err(failed)?;
    }
    fill(wire, &file, options.bytes, target)?;
    if let Some(mode) = mode {
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(Reply::Written { bytes: options.bytes })
}

fn fill(wire: &mut Wire, mut file: &File, bytes: u64, target: &TargetPath) -> Result<(), Fault> {
    let mut missing = bytes;
    while missing > 0 {
        let data = wire.data()?;
        check_input(data, missing)?;
        file.write_all(data).map_err(|source| failed(target, &source))?;
        missing -= data.len() as u64;
    }
    Ok(())
}
