// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes a whole file.

use std::{io::Write, path::Path};

use nix::{fcntl::OFlag, sys::stat::Mode};
use waggle_protocol::{Fault, FaultKind, Reply};

use super::{path::Place, wire::Wire};
use crate::fault::fault_of;

/// Replaces the file's content by the `bytes` bytes that follow, or makes the file, with its parents.
pub(super) fn file(wire: &mut Wire, root: &Path, path: &str, bytes: u64, mode: u32) -> Result<Reply<'static>, Fault> {
    let place = Place::new(root, path)?;
    let failed = |source: &std::io::Error| fault_of(source, &format!("failed to write {}", place.named()));
    place.make_parents().map_err(|source| failed(&source))?;
    let mode = Mode::from_bits_truncate(mode & 0o777);
    let mut file = place.open(OFlag::O_WRONLY | OFlag::O_CREAT, mode).map_err(|source| failed(&source))?;
    let meta = file.metadata().map_err(|source| failed(&source))?;
    if !meta.is_file() {
        let message = format!("failed to write {}: it is not a regular file", place.named());
        return Err(Fault { kind: FaultKind::NotRegular, message });
    }
    file.set_len(0).map_err(|source| failed(&source))?;
    let mut missing = bytes;
    while missing > 0 {
        let data = wire.data()?;
        if data.is_empty() || data.len() as u64 > missing {
            let message = format!("an input does not fit the {missing} bytes that the file still lacks");
            return Err(Fault { kind: FaultKind::BadRequest, message });
        }
        file.write_all(data).map_err(|source| failed(&source))?;
        missing -= data.len() as u64;
    }
    Ok(Reply::Written { bytes })
}
