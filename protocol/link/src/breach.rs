// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rules of a link that a peer can break. Each breach ends the link.

use std::io;

use waggle_protocol::CHUNK_BYTES_MAX;

/// Maximum length of a yamux frame's body in bytes. Both sides send at most one chunk at a time.
pub(crate) const BODY_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// A rule of the link that the peer broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Breach {
    /// A record without a valid length or tag. A new process at the other end of a port causes this, too.
    #[error("peer sent an invalid record, or began a new link")]
    Record,
    /// A violation of the yamux protocol. This side's yamux sends "go away" only after such a violation.
    #[error("peer violated the yamux protocol")]
    Yamux,
    /// A frame body longer than any that an honest peer sends.
    #[error("peer announced a yamux frame of {bytes} bytes; at most {BODY_BYTES_MAX} are allowed")]
    TooLong {
        /// The length in the header.
        bytes: usize,
    },
    /// More pings, resets, credit and empty data than any honest peer sends.
    #[error("peer flooded the link with frames without data")]
    Flood,
    /// More unread data than this side buffers. Small pieces count with their overhead.
    #[error("peer exceeded the limit of unread data ({bytes} bytes buffered)")]
    Unread {
        /// The memory that the unread data uses.
        bytes: u64,
    },
}

impl Breach {
    /// Returns the breach that an I/O error contains, if any.
    pub(crate) fn of(fault: &io::Error) -> Option<Self> {
        fault.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).copied()
    }
}

impl From<Breach> for io::Error {
    fn from(breach: Breach) -> Self {
        Self::new(io::ErrorKind::InvalidData, breach)
    }
}
