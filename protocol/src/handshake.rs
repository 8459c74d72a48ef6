// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The start of a link: a preamble with a fixed layout that all versions understand, then the hello of this version.
//!
//! ```text
//!  offset  0         8         12        16
//!          │ magic   │ version │ link    │   the agent's preamble
//!          │ magic   │ version │ verdict │   the host's answer
//! ```
//!
//! Numbers are `u32`, little-endian. This layout never changes.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{PROGRAMS_MAX, TEXT_BYTES_MAX, VERSION};

/// Length of the preamble and of the answer, in bytes.
pub const PREAMBLE_BYTES: usize = 16;

/// The first bytes of the preamble and of the answer: a name, and a line ending that a text-mode channel would alter.
const MAGIC: [u8; 8] = *b"waggle\r\n";

/// The kind of link that a connection carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// Carries calls: only the host opens streams.
    Call,
    /// Carries the guest's network connections: only the guest opens streams.
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

/// The reason why a handshake was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HandshakeRefusal {
    /// The peer does not speak waggle.
    #[error("peer does not speak waggle: its first bytes are {found:02x?}")]
    NotWaggle {
        /// The bytes received in place of the magic.
        found: [u8; 8],
    },
    /// The two sides have different protocol versions.
    #[error("peer has protocol version {theirs}; must be {ours}")]
    Version {
        /// This side's version.
        ours: u32,
        /// The peer's version.
        theirs: u32,
    },
    /// The preamble requests the wrong kind of link for this port.
    #[error("invalid link number {found} on this port; must be {expected}")]
    WrongLink {
        /// The number of the link that the port serves.
        expected: u32,
        /// The number of the link that the preamble requests.
        found: u32,
    },
    /// The peer expects another kind of link on this port.
    #[error("peer rejected link number {link} on this port")]
    LinkRefused {
        /// The number of the link that this side requested.
        link: u32,
    },
    /// The host refused with a verdict that this version does not know.
    #[error("peer refused with the unknown verdict {verdict}")]
    Unknown { verdict: u32 },
}

const ACCEPTED: u32 = 0;
const WRONG_VERSION: u32 = 1;
const WRONG_LINK: u32 = 2;

/// Returns the agent's first bytes on a connection.
#[must_use]
pub fn preamble(link: Link) -> [u8; PREAMBLE_BYTES] {
    pack(VERSION, link.number())
}

/// Checks a preamble received on the port of `expected`. Returns the bytes to answer with, and the verdict. A peer that
/// does not speak waggle gets no answer.
pub fn check_preamble(
    bytes: [u8; PREAMBLE_BYTES],
    expected: Link,
) -> (Option<[u8; PREAMBLE_BYTES]>, Result<(), HandshakeRefusal>) {
    match unpack(bytes) {
        Err(refusal) => (None, Err(refusal)),
        Ok((theirs, _)) if theirs != VERSION => {
            (Some(pack(VERSION, WRONG_VERSION)), Err(HandshakeRefusal::Version { ours: VERSION, theirs }))
        }
        Ok((_, found)) if found != expected.number() => {
            (Some(pack(VERSION, WRONG_LINK)), Err(HandshakeRefusal::WrongLink { expected: expected.number(), found }))
        }
        Ok(_) => (Some(pack(VERSION, ACCEPTED)), Ok(())),
    }
}

/// Reads the host's answer to the preamble of `link`.
///
/// # Errors
/// The refusal that the answer contains.
pub fn read_answer(bytes: [u8; PREAMBLE_BYTES], link: Link) -> Result<(), HandshakeRefusal> {
    match unpack(bytes)? {
        (VERSION, ACCEPTED) => Ok(()),
        (theirs, _) if theirs != VERSION => Err(HandshakeRefusal::Version { ours: VERSION, theirs }),
        (_, WRONG_LINK) => Err(HandshakeRefusal::LinkRefused { link: link.number() }),
        (_, verdict) => Err(HandshakeRefusal::Unknown { verdict }),
    }
}

fn pack(version: u32, last: u32) -> [u8; PREAMBLE_BYTES] {
    let [m0, m1, m2, m3, m4, m5, m6, m7] = MAGIC;
    let [v0, v1, v2, v3] = version.to_le_bytes();
    let [l0, l1, l2, l3] = last.to_le_bytes();
    [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, l0, l1, l2, l3]
}

fn unpack(bytes: [u8; PREAMBLE_BYTES]) -> Result<(u32, u32), HandshakeRefusal> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, l0, l1, l2, l3] = bytes;
    let found = [m0, m1, m2, m3, m4, m5, m6, m7];
    if found != MAGIC {
        return Err(HandshakeRefusal::NotWaggle { found });
    }
    Ok((u32::from_le_bytes([v0, v1, v2, v3]), u32::from_le_bytes([l0, l1, l2, l3])))
}

/// The agent's first message on the call link. The agent sends the hello when it needs only the
/// welcome to serve calls.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Hello {
    pub origin: Origin,
    /// The version and the build of the agent, for people.
    pub build: String,
    /// The programs of [`PROGRAMS`] that the agent found.
    pub programs: Vec<String>,
}

impl Hello {
    /// Returns true if the hello is within [`TEXT_BYTES_MAX`] and [`PROGRAMS_MAX`] and contains only printable text.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let printable = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        printable(&self.build) && self.programs.len() <= PROGRAMS_MAX && self.programs.iter().all(printable)
    }
}

/// The interpreters and package managers that an agent looks for.
pub const PROGRAMS: &[&str] = &["python3", "node", "npm", "bash", "sh", "apk", "apt-get", "dnf", "yum", "zypper"];

/// The source of the running agent's executable.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Origin {
    /// The host's copy of the agent, from the initial root.
    Host,
    /// The image's own copy of the agent.
    Image,
}

/// Length of a [`Seed`] in bytes: the size of the kernel's entropy pool.
pub const SEED_BYTES: usize = 32;

/// The host's answer to a hello: everything that makes the guest a machine of its own. The agent applies the welcome
/// before it serves a call or starts a program.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Welcome {
    /// The host's clock, in nanoseconds since the Unix epoch.
    pub unix_ns: u64,
    /// The machine's host name, at most 64 bytes.
    pub hostname: String,
    pub seed: Seed,
}

/// Random bytes of the host for the guest kernel's random number generator. Each welcome has new ones.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Seed(pub [u8; SEED_BYTES]);

/// Does not contain the bytes, which are secret.
impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Seed(..)")
    }
}

/// The agent's answer to a welcome. The agent has applied the welcome, and serves calls from now on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Ready;
