// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a whole file.

use std::{io::Read, path::Path};

use nix::{fcntl::OFlag, sys::stat::Mode};
use waggle_protocol::{CHUNK_BYTES_MAX, Fault, FaultKind, Reply};

use super::{path::Place, wire::Wire};
use crate::fault::fault_of;

/// Sends the file's bytes; the size is checked before the first of them goes out. Files that claim to be empty, as those
/// of `/proc` do, are read to their end all the same.
pub(super) fn file(wire: &mut Wire, root: &Path, path: &str, bytes_max: u64) -> Result<Reply<'static>, Fault> {
    let place = Place::new(root, path)?;
    let failed = |source: &std::io::Error| fault_of(source, &format!("failed to read {}", place.named()));
    let mut file = place.open(OFlag::O_RDONLY, Mode::empty()).map_err(|source| failed(&source))?;
    let meta = file.metadata().map_err(|source| failed(&source))?;
    let refuse = |kind, why: &str| Err(Fault { kind, message: format!("failed to read {}: {why}", place.named()) });
    if meta.is_dir() {
        return refuse(FaultKind::IsDirectory, "it is a directory; list it instead");
    }
    if !meta.is_file() {
        return refuse(FaultKind::NotRegular, "it is not a regular file");
    }
    if meta.len() > bytes_max {
        return refuse(
            FaultKind::TooLarge,
            &format!("it has {} bytes, and a call reads at most {bytes_max}", meta.len()),
        );
    }
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let mut sent = 0;
    loop {
        let read = file.read(&mut buffer).map_err(|source| failed(&source))?;
        if read == 0 {
            return Ok(Reply::FileEnd);
        }
        sent += read as u64;
        if sent > bytes_max {
            return refuse(
                FaultKind::TooLarge,
                &format!("it has grown beyond {bytes_max} bytes, the most a call reads"),
            );
        }
        wire.reply(&Reply::Data(buffer.get(..read).unwrap_or_default()))?;
    }
}
