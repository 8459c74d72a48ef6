// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! How a link begins: a preamble of fixed bytes that any two versions understand, then the hello of this version.
//!
//! ```text
//!  offset  0         8         12        16
//!          │ magic   │ version │ link    │   the agent's preamble
//!          │ magic   │ version │ verdict │   the host's answer
//! ```
//!
//! Numbers are `u32`, little-endian. This layout never changes.

use serde::{Deserialize, Serialize};

use crate::{PROGRAMS_MAX, TEXT_BYTES_MAX, VERSION};

/// Bytes of the preamble, and of its answer.
pub const PREAMBLE_BYTES: usize = 16;

/// Opens the preamble and its answer: a name, and line ends that a text channel would mangle.
const MAGIC: [u8; 8] = *b"waggle\r\n";

/// Which link a connection is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// Calls: only the host opens streams.
    Call,
    /// Outgoing network flows: only the guest opens streams.
    Egress,
}

impl Link {
    fn number(self) -> u32 {
        match self {
            Self::Call => 1,
            Self::Egress => 2,
        }
    }
}

/// Why a link was not made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The other side does not speak waggle.
    #[error("the other side does not speak waggle: its first bytes are {found:02x?}")]
    NotWaggle {
        /// What came in place of the magic.
        found: [u8; 8],
    },
    /// The two sides are of different versions.
    #[error("protocol version {theirs} on the other side does not fit version {ours} here")]
    Version {
        /// This side's version.
        ours: u32,
        /// The other side's.
        theirs: u32,
    },
    /// The connection is for another link than the port that it came to.
    #[error("link number {found} came where link number {expected} was expected")]
    WrongLink {
        /// The link that the port is for.
        expected: u32,
        /// The link that the preamble names.
        found: u32,
    },
    /// The other side expects another link on this port.
    #[error("the other side expects another link than number {link} on this port")]
    LinkRefused {
        /// The link that was asked for.
        link: u32,
    },
    /// The host refused for a reason that this version does not know.
    #[error("the other side refused with verdict {verdict}")]
    Unknown {
        /// The verdict's number.
        verdict: u32,
    },
}

const ACCEPTED: u32 = 0;
const WRONG_VERSION: u32 = 1;
const WRONG_LINK: u32 = 2;

/// The agent's first bytes on a connection.
#[must_use]
pub fn preamble(link: Link) -> [u8; PREAMBLE_BYTES] {
    pack(VERSION, link.number())
}

/// Judges a preamble, for a connection that came to `expected`'s port: the answer to send, and the verdict. No answer
/// goes to a side that does not speak waggle.
pub fn judge(bytes: [u8; PREAMBLE_BYTES], expected: Link) -> (Option<[u8; PREAMBLE_BYTES]>, Result<(), Refusal>) {
    match unpack(bytes) {
        Err(refusal) => (None, Err(refusal)),
        Ok((theirs, _)) if theirs != VERSION => {
            (Some(pack(VERSION, WRONG_VERSION)), Err(Refusal::Version { ours: VERSION, theirs }))
        }
        Ok((_, found)) if found != expected.number() => {
            (Some(pack(VERSION, WRONG_LINK)), Err(Refusal::WrongLink { expected: expected.number(), found }))
        }
        Ok(_) => (Some(pack(VERSION, ACCEPTED)), Ok(())),
    }
}

/// Reads the host's answer to the preamble of `link`.
///
/// # Errors
/// The [`Refusal`] that the answer stands for.
pub fn read_answer(bytes: [u8; PREAMBLE_BYTES], link: Link) -> Result<(), Refusal> {
    match unpack(bytes)? {
        (VERSION, ACCEPTED) => Ok(()),
        (theirs, _) if theirs != VERSION => Err(Refusal::Version { ours: VERSION, theirs }),
        (_, WRONG_LINK) => Err(Refusal::LinkRefused { link: link.number() }),
        (_, verdict) => Err(Refusal::Unknown { verdict }),
    }
}

fn pack(version: u32, last: u32) -> [u8; PREAMBLE_BYTES] {
    let [m0, m1, m2, m3, m4, m5, m6, m7] = MAGIC;
    let [v0, v1, v2, v3] = version.to_le_bytes();
    let [l0, l1, l2, l3] = last.to_le_bytes();
    [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, l0, l1, l2, l3]
}

fn unpack(bytes: [u8; PREAMBLE_BYTES]) -> Result<(u32, u32), Refusal> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, l0, l1, l2, l3] = bytes;
    let found = [m0, m1, m2, m3, m4, m5, m6, m7];
    if found != MAGIC {
        return Err(Refusal::NotWaggle { found });
    }
    Ok((u32::from_le_bytes([v0, v1, v2, v3]), u32::from_le_bytes([l0, l1, l2, l3])))
}

/// The agent's first message on the call link: it is ready to serve.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Hello {
    /// Where the agent came from.
    pub origin: Origin,
    /// Its version and build, for people.
    pub build: String,
    /// Names of the programs that it found, of those in [`PROGRAMS`].
    pub programs: Vec<String>,
}

impl Hello {
    /// Whether the hello keeps within [`TEXT_BYTES_MAX`] and [`PROGRAMS_MAX`] and holds printable text only.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let printable = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        printable(&self.build) && self.programs.len() <= PROGRAMS_MAX && self.programs.iter().all(printable)
    }
}

/// The interpreters and package managers that an agent looks for.
pub const PROGRAMS: &[&str] = &["python3", "node", "npm", "bash", "sh", "apk", "apt-get", "dnf", "yum", "zypper"];

/// Where an agent came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Origin {
    /// The host's copy, from the initial root.
    Host,
    /// The image's own.
    Image,
}

/// The host's answer to a hello.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Welcome {
    /// The host's clock, in nanoseconds since the Unix epoch.
    pub unix_ns: u64,
}
