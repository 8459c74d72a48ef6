// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rules of a link that a peer can break. Each breach ends the link.

/// A rule of the link that the peer broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Breach {
    /// A record without a valid length or tag. A new process at the other end of a port causes this, too.
    #[error("peer sent an invalid record, or began a new link")]
    Record,
    /// An unknown kind of frame, or a value that is invalid for the kind.
    #[error("peer sent an invalid frame header: {header:02x?}")]
    Header { header: [u8; 8] },
    /// A stream from the side that must not open streams.
    #[error("peer opened a stream; only this side may open streams on this link")]
    UnexpectedStream,
    /// A stream that is open already, or is still closing, or whose number is too large.
    #[error("peer opened stream {stream}; must be closed and below {streams_max}")]
    Opened { stream: u32, streams_max: usize },
    /// A frame on a stream that the peer has not opened or does not know, or has closed.
    #[error("peer sent a frame on stream {stream}, which is not open")]
    NotOpen { stream: u32 },
    /// Data beyond the credit, or data after the end.
    #[error("peer sent {bytes} bytes of data on a stream with {credit} bytes of credit")]
    Data {
        bytes: u32,
        /// The unused credit of the peer.
        credit: u32,
    },
    /// An end after the end.
    #[error("peer ended stream {stream} twice")]
    Ended { stream: u32 },
    /// A grant that raises the credit above the limit.
    #[error("peer granted {bytes} bytes on top of {credit}; must be at most {credit_max} in total")]
    Credit {
        bytes: u32,
        /// The unused credit from earlier grants.
        credit: u32,
        credit_max: u32,
    },
}

impl From<Breach> for std::io::Error {
    fn from(breach: Breach) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, breach)
    }
}
