// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The layout of the bytes under a link: the openings that begin a generation, and the records that carry its data.
//!
//! This layout never changes, so that any two versions from 3 on can exchange their preambles.
//!
//! A virtio-serial port has no connections. It is one stream of bytes each way, which outlives the processes at both
//! ends. Bytes of a dead process may still be in the stream, and may stop in the middle of a record. So each life of a
//! link is a *generation*, which begins when each side has seen the other's nonce:
//!
//! ```text
//!   guest agent                                     host
//!       ├─ break ───────────────────────────────────▶│ ends a record that an earlier process left incomplete
//!       ├─ Dial: guest's nonce ─────────────────────▶│ discards everything before
//!       │◀─────── Answer: guest's nonce, host's nonce ┤
//!       ├─ Start: guest's nonce, host's nonce ──────▶│ discards everything before
//!       │◀═══════════════ records from here on ═════▶│
//! ```
//!
//! The guest repeats `Dial` until the host answers, because a host that still serves an earlier generation loses the
//! first one. The host answers each nonce once. A connection over vsock carries one generation. It needs no break, but
//! is otherwise the same.
//!
//! A record is complete if it ends with the tag of its generation. No part of an incomplete record is delivered.
//!
//! ```text
//!  opening │ marker │ kind │ guest's nonce │ host's nonce, zeroes in a Dial │
//!          0        7      8               24                               40
//!  record  │ length of the body │ body │ tag: the first 8 bytes of the host's nonce │
//!          0                    4      4 + length                                   12 + length
//! ```
//!
//! The length is a `u32`, little-endian, from 1 to [`RECORD_BODY_BYTES_MAX`].

/// Length of a nonce in bytes. A process never meets a random nonce of this length a second time.
pub const NONCE_BYTES: usize = 16;

/// Length of an opening in bytes.
pub const OPENING_BYTES: usize = MARKER.len() + 1 + 2 * NONCE_BYTES;

/// Maximum length of the body of a record in bytes. The record fits into one vsock packet of 28 KiB: Linux 6.17 and
/// later split larger packets into more descriptors than some vsock devices accept. One write to a virtio-serial port
/// also carries at most 32 KiB.
pub const RECORD_BODY_BYTES_MAX: usize = 28 * 1024 - LENGTH_BYTES - TAG_BYTES;

/// Length of the field before the body of a record, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// Length of the tag after the body of a record, in bytes.
pub const TAG_BYTES: usize = 8;

/// Number of [`BREAK`] bytes in a break: longer than any record, so that the next record's length is invalid.
pub const BREAK_BYTES: usize = LENGTH_BYTES + RECORD_BODY_BYTES_MAX + TAG_BYTES + OPENING_BYTES;

/// The byte that a break repeats. Four of them are an invalid length of a record.
pub const BREAK: u8 = 0xff;

/// The first bytes of an opening.
pub const MARKER: [u8; 7] = *b"waggle\r";

/// A value that one side draws for one generation.
pub type Nonce = [u8; NONCE_BYTES];

/// The value at the end of each record of one generation.
pub type Tag = [u8; TAG_BYTES];

/// A message that begins a generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opening {
    /// The guest asks for a new generation.
    Dial { guest: Nonce },
    /// The host has discarded everything before the guest's `Dial`.
    Answer { guest: Nonce, host: Nonce },
    /// The guest has discarded everything before the host's `Answer`. The records of the generation follow.
    Start { guest: Nonce, host: Nonce },
}

const DIAL: u8 = 1;
const ANSWER: u8 = 2;
const START: u8 = 3;

impl Opening {
    #[must_use]
    pub fn encode(self) -> [u8; OPENING_BYTES] {
        let (kind, guest, host) = match self {
            Self::Dial { guest } => (DIAL, guest, [0; NONCE_BYTES]),
            Self::Answer { guest, host } => (ANSWER, guest, host),
            Self::Start { guest, host } => (START, guest, host),
        };
        let mut bytes = [0; OPENING_BYTES];
        let fields = MARKER.iter().chain([&kind]).chain(&guest).chain(&host);
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = *from;
        }
        bytes
    }

    /// Returns `None` if the bytes are not an opening.
    #[must_use]
    pub fn decode(bytes: &[u8; OPENING_BYTES]) -> Option<Self> {
        let (kind, nonces) = bytes.strip_prefix(&MARKER)?.split_first()?;
        let (guest, host) = nonces.split_first_chunk()?;
        let host = *host.first_chunk()?;
        match *kind {
            DIAL if host == [0; NONCE_BYTES] => Some(Self::Dial { guest: *guest }),
            ANSWER => Some(Self::Answer { guest: *guest, host }),
            START => Some(Self::Start { guest: *guest, host }),
            _ => None,
        }
    }
}

/// Returns the tag of the generation for which the host has drawn this nonce.
#[must_use]
pub fn tag([t0, t1, t2, t3, t4, t5, t6, t7, ..]: Nonce) -> Tag {
    [t0, t1, t2, t3, t4, t5, t6, t7]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_decoded_and_nothing_else_is() {
        let (guest, host) = ([1; NONCE_BYTES], [2; NONCE_BYTES]);
        for opening in [Opening::Dial { guest }, Opening::Answer { guest, host }, Opening::Start { guest, host }] {
            let bytes = opening.encode();
            assert_eq!(Opening::decode(&bytes), Some(opening));
            for at in 0..MARKER.len() + 1 {
                let mut damaged = bytes;
                damaged[at] ^= 0x80;
                assert_eq!(Opening::decode(&damaged), None);
            }
        }
        assert_eq!(Opening::decode(&[BREAK; OPENING_BYTES]), None);
    }
}
