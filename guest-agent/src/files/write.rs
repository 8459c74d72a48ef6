// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes a whole file, or adds to one.
//!
//! A file is replaced at once: the bytes go to a temporary file next to it, which then takes its name, so that a write
//! that fails, for a full disk or a host that left, leaves the old content. Links are followed first; mode, owner and
//! group stay, access control lists and extended attributes do not.
//! Where a replacement would not be the same file (another owner, more names than one, a folder that takes no new
//! file), it is written in place.

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
    path::{Place, Spot, View},
    wire::Wire,
};
use crate::fault::fault_of;

/// Permissions of a new file.
const NEW_FILE_MODE: u32 = 0o644;

/// What to write.
#[derive(Clone, Copy)]
pub(super) struct Writing {
    pub(super) bytes: u64,
    pub(super) mode: Option<u32>,
    pub(super) append: bool,
}

/// Takes the bytes that follow into the file, making it and its parents if need be.
pub(super) fn file(wire: &mut Wire, view: &View, path: &str, writing: Writing) -> Result<Reply<'static>, Fault> {
    let place = Place::new(view, path);
    let failed = |source: io::Error| fault_of(&source, &format!("failed to write {}", place.named()));
    place.make_parents().map_err(failed)?;
    let old = existing(&place)?;
    let mode = writing.mode.map(|mode| mode & 0o7777);
    let spot = if writing.append { None } else { replaceable(&place, old.as_ref()) };
    match spot {
        Some(spot) => {
            let (temporary, name) = match spot.temporary() {
                Ok(made) => made,
                // The folder takes no new file, but the file itself can be written.
                Err(fault) if old.is_some() && denies(&fault) => return in_place(wire, &place, writing, mode),
                Err(fault) => return Err(failed(fault)),
            };
            let filled = fill(wire, &temporary, writing.bytes, &failed).and_then(|()| {
                let kept = old.as_ref().map_or(NEW_FILE_MODE, |meta| meta.mode() & 0o7777);
                temporary.set_permissions(Permissions::from_mode(mode.unwrap_or(kept))).map_err(failed)?;
                spot.take_name(&name).map_err(failed)
            });
            if filled.is_err() {
                spot.remove(&name);
            }
            filled?;
            Ok(Reply::Written { bytes: writing.bytes })
        }
        None => in_place(wire, &place, writing, mode),
    }
}

/// The file that is there, if it is one that can be written; only that is asked, nothing is changed.
fn existing(place: &Place) -> Result<Option<Metadata>, Fault> {
    let refuse = |kind, why: &str| Err(Fault { kind, message: format!("failed to write {}: {why}", place.named()) });
    let failed = |source: &io::Error| fault_of(source, &format!("failed to write {}", place.named()));
    match place.open(OFlag::O_WRONLY, Mode::empty()) {
        Ok(file) => {
            let meta = file.metadata().map_err(|source| failed(&source))?;
            if meta.is_file() { Ok(Some(meta)) } else { refuse(FaultKind::NotRegular, "it is not a regular file") }
        }
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
        // A pipe that nobody reads.
        Err(fault) if fault.raw_os_error() == Some(nix::libc::ENXIO) => {
            refuse(FaultKind::NotRegular, "it is not a regular file")
        }
        Err(fault) => Err(failed(&fault)),
    }
}

/// Where a replacement goes, if it would be the same file to everyone.
fn replaceable(place: &Place, old: Option<&Metadata>) -> Option<Spot> {
    match old {
        Some(meta) if meta.nlink() > 1 => None,
        Some(meta) if (meta.uid(), meta.gid()) != (geteuid().as_raw(), getegid().as_raw()) => None,
        Some(_) => place.spot_of_existing().ok(),
        None => place.spot_of_new().ok(),
    }
}

fn denies(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn in_place(wire: &mut Wire, place: &Place, writing: Writing, mode: Option<u32>) -> Result<Reply<'static>, Fault> {
    let failed = |source: io::Error| fault_of(&source, &format!("failed to write {}", place.named()));
    let how = if writing.append { OFlag::O_APPEND } else { OFlag::empty() };
    let new = Mode::from_bits_truncate(mode.unwrap_or(NEW_FILE_MODE));
    let file = place.open(OFlag::O_WRONLY | OFlag::O_CREAT | how, new).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        let message = format!("failed to write {}: it is not a regular file", place.named());
        return Err(Fault { kind: FaultKind::NotRegular, message });
    }
    if !writing.append {
        file.set_len(0).map_err(failed)?;
    }
    fill(wire, &file, writing.bytes, &failed)?;
    if let Some(mode) = mode {
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(Reply::Written { bytes: writing.bytes })
}

fn fill(wire: &mut Wire, mut file: &File, bytes: u64, failed: &dyn Fn(io::Error) -> Fault) -> Result<(), Fault> {
    let mut missing = bytes;
    while missing > 0 {
        let data = wire.data()?;
        if data.is_empty() || data.len() as u64 > missing {
            let message = format!("an input of {} bytes came where 1 to {missing} were due", data.len());
            return Err(Fault { kind: FaultKind::BadRequest, message });
        }
        file.write_all(data).map_err(failed)?;
        missing -= data.len() as u64;
    }
    Ok(())
}
