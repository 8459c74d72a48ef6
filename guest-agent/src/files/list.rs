// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lists a folder, one level deep, dot files included.

use std::{os::fd::AsFd, path::Path};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, fstatat},
};
use waggle_protocol::{Fault, Reply, reply::Entry};

use super::{path::Place, wire::Wire};
use crate::fault::fault_of;

/// Entries in one reply: with names of the kernel's longest (255 bytes) they fit a frame.
const BATCH: usize = 256;

/// Sends the folder's entries, at most `entries_max`. An entry that vanishes meanwhile is left out.
pub(super) fn folder(wire: &mut Wire, root: &Path, path: &str, entries_max: u32) -> Result<Reply<'static>, Fault> {
    let place = Place::new(root, path)?;
    let failed = |source: &std::io::Error| fault_of(source, &format!("failed to list {}", place.named()));
    let folder = place.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map_err(|source| failed(&source))?;
    let at = folder.try_clone().map_err(|source| failed(&source))?;
    let mut names = Dir::from_fd(folder.into()).map_err(|errno| failed(&errno.into()))?;
    let (mut batch, mut left) = (Vec::with_capacity(BATCH), entries_max);
    for name in names.iter() {
        let name = name.map_err(|errno| failed(&errno.into()))?;
        let name = name.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = fstatat(at.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        if left == 0 {
            wire.reply(&Reply::Entries(batch))?;
            return Ok(Reply::ListEnd { truncated: true });
        }
        left -= 1;
        batch.push(Entry {
            name: name.to_bytes().to_vec(),
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_unix_s: stat.st_mtime,
        });
        if batch.len() == BATCH {
            wire.reply(&Reply::Entries(std::mem::take(&mut batch)))?;
        }
    }
    wire.reply(&Reply::Entries(batch))?;
    Ok(Reply::ListEnd { truncated: false })
}
