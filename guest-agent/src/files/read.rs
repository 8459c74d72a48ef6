// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a whole file or a part of it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use nix::{fcntl::OFlag, sys::stat::Mode};
use waggle_protocol::{CHUNK_BYTES_MAX, Fault, FaultKind, Reply};

use super::{
    path::{FileRoot, TargetPath},
    wire::{StreamFault, Wire},
};
use crate::fault::{fault, fault_of};

#[derive(Clone, Copy)]
pub(super) struct Options {
    /// Offset and length of a part; `None` reads the whole file.
    pub(super) range: Option<(u64, u64)>,
    pub(super) bytes_max: u64,
}

/// Sends the bytes of the file. The size of a whole file is checked before the first byte is sent. A file with a
/// reported size of 0, such as a file in `/proc`, is still read to its end.
pub(super) fn file(wire: &mut Wire, root: &FileRoot, path: &str, options: Options) -> Result<Reply<'static>, Fault> {
    let target = TargetPath::new(root, path);
    let failed = |source: io::Error| fault_of(&source, &format!("failed to read {}", target.named()));
    let refuse = |kind, why: &str| Err(fault(kind, format!("failed to read {}: {why}", target.named())));
    let mut file = target.open(OFlag::O_RDONLY, Mode::empty()).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return refuse(FaultKind::IsDirectory, "it is a directory; list it instead");
    }
    if !meta.is_file() {
        return refuse(FaultKind::NotRegular, "it is not a regular file");
    }
    let bytes_max = options.bytes_max;
    let limit = match options.range {
        Some((_, length)) if length > bytes_max => {
            let why = format!("the part has {length} bytes; a call reads at most {bytes_max}");
            return refuse(FaultKind::TooLarge, &why);
        }
        Some((offset, length)) => {
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            length
        }
        None if meta.len() > bytes_max => {
            let why = format!("it has {} bytes; a call reads at most {bytes_max}, so read it in parts", meta.len());
            return refuse(FaultKind::TooLarge, &why);
        }
        None => bytes_max,
    };
    let sent = send(wire, &file, limit).map_err(|fault| fault.into_fault(failed))?;
    // The file has grown since the check, or it is a kernel file without a reported size.
    if options.range.is_none() && sent == limit && file.read(&mut [0]).map_err(failed)? > 0 {
        return refuse(FaultKind::TooLarge, &format!("it has more than the {bytes_max} bytes that a call can read"));
    }
    Ok(Reply::FileEnd { size: meta.len() })
}

fn send(wire: &mut Wire, file: &File, limit: u64) -> Result<u64, StreamFault> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let mut file = file.take(limit);
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
