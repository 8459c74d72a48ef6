// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a file, or a part of one.

use std::io::{self, Read, Seek, SeekFrom};

use nix::{fcntl::OFlag, sys::stat::Mode};
use waggle_protocol::{CHUNK_BYTES_MAX, Fault, FaultKind, Reply};

use super::{
    path::{Place, View},
    wire::{StreamFault, Wire},
};
use crate::fault::fault_of;

/// What to read: a part, or the whole, and how much at the most.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) range: Option<(u64, u64)>,
    pub(super) bytes_max: u64,
}

/// Sends the bytes that are wanted. A whole file is measured before the first of them goes out; one that claims to be
/// empty, as those of `/proc` do, is read to its end all the same.
pub(super) fn file(wire: &mut Wire, view: &View, path: &str, wanted: Wanted) -> Result<Reply<'static>, Fault> {
    let place = Place::new(view, path);
    let failed = |source: &io::Error| fault_of(source, &format!("failed to read {}", place.named()));
    let refuse = |kind, why: &str| Err(Fault { kind, message: format!("failed to read {}: {why}", place.named()) });
    let mut file = place.open(OFlag::O_RDONLY, Mode::empty()).map_err(|source| failed(&source))?;
    let meta = file.metadata().map_err(|source| failed(&source))?;
    if meta.is_dir() {
        return refuse(FaultKind::IsDirectory, "it is a directory; list it instead");
    }
    if !meta.is_file() {
        return refuse(FaultKind::NotRegular, "it is not a regular file");
    }
    let bytes_max = wanted.bytes_max;
    let most = match wanted.range {
        Some((_, limit)) if limit > bytes_max => {
            return refuse(
                FaultKind::TooLarge,
                &format!("{limit} bytes were asked for; a call reads at most {bytes_max}"),
            );
        }
        Some((offset, limit)) => {
            file.seek(SeekFrom::Start(offset)).map_err(|source| failed(&source))?;
            limit
        }
        None if meta.len() > bytes_max => {
            let why = format!("it has {} bytes; a call reads at most {bytes_max}, so read it in parts", meta.len());
            return refuse(FaultKind::TooLarge, &why);
        }
        None => bytes_max,
    };
    let sent = send(wire, &file, most).map_err(|fault| fault.of(|source| failed(&source)))?;
    // A part ends where it was meant to; a whole file that goes on has grown, or belongs to the kernel.
    if wanted.range.is_none() && sent == most && file.read(&mut [0]).map_err(|source| failed(&source))? > 0 {
        return refuse(
            FaultKind::TooLarge,
            &format!("it has more than the {bytes_max} bytes that a call reads at most"),
        );
    }
    Ok(Reply::FileEnd { size: meta.len() })
}

fn send(wire: &mut Wire, file: &std::fs::File, most: u64) -> Result<u64, StreamFault> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let mut file = file.take(most);
    let mut sent = 0;
    loop {
        match file.read(&mut buffer).map_err(StreamFault::File)? {
            0 => return Ok(sent),
            read => {
                sent += read as u64;
                let data = Reply::Data(buffer.get(..read).unwrap_or_default());
                wire.reply(&data).map_err(StreamFault::Stream)?;
            }
        }
    }
}
