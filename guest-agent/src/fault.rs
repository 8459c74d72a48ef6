// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Turns what the guest's kernel said into a fault of the protocol.

use std::io;

use nix::errno::Errno;
use waggle_protocol::{Fault, FaultKind};

/// A fault for an error of the guest's kernel, behind a sentence that says what was tried.
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
    Fault { kind, message: format!("{what}: {source}") }
}
