// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Builds the protocol's faults.

use std::io;

use nix::errno::Errno;
use waggle_protocol::{Fault, FaultKind};

pub(crate) fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault { kind, message: message.into() }
}

/// Converts an error of the guest's kernel. `what` describes the failed operation.
pub(crate) fn fault_of(source: &io::Error, what: &str) -> Fault {
    let kind = match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => FaultKind::NotFound,
        Some(Errno::EISDIR) => FaultKind::IsDirectory,
        Some(Errno::ENOTDIR) => FaultKind::NotDirectory,
        Some(Errno::EACCES | Errno::EPERM) => FaultKind::Denied,
        Some(Errno::EFBIG) => FaultKind::TooLarge,
        Some(Errno::ENOSPC | Errno::EDQUOT) => FaultKind::NoSpace,
        Some(Errno::EROFS) => FaultKind::ReadOnly,
        Some(Errno::ENAMETOOLONG | Errno::ELOOP | Errno::EINVAL) => FaultKind::InvalidPath,
        _ => FaultKind::Other,
    };
    fault(kind, format!("{what}: {source}"))
}

/// Checks that an input has 1 to `missing` bytes. `missing` is the announced size minus the bytes received so far.
pub(crate) fn check_input(bytes: &[u8], missing: u64) -> Result<(), Fault> {
    if (1..=missing).contains(&(bytes.len() as u64)) {
        return Ok(());
    }
    let message = format!("invalid input of {} bytes: must have 1 to {missing}", bytes.len());
    Err(fault(FaultKind::BadRequest, message))
}
