// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the agent answers on a call's stream: any number of replies, of which the last ends the call.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// One message of the agent's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Reply<'a> {
    /// More of the command's standard output; at most [`crate::CHUNK_BYTES_MAX`] bytes.
    Stdout(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// More of the command's standard error; at most [`crate::CHUNK_BYTES_MAX`] bytes.
    Stderr(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// More of the file; at most [`crate::CHUNK_BYTES_MAX`] bytes.
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// Some of the folder's entries, in no order.
    Entries(Vec<Entry>),
    /// Last: the command is over.
    Exited(Exited),
    /// Last: the file is written.
    Written {
        /// Length of the file.
        bytes: u64,
    },
    /// Last: what was asked for of the file has been sent.
    FileEnd {
        /// The file's whole size when it was opened; 0 for files that the kernel makes up.
        size: u64,
    },
    /// Last: the folder was listed.
    ListEnd {
        /// True if the folder holds more than was asked for.
        truncated: bool,
    },
    /// Last: what was asked for is done.
    Done,
    /// Last: it did not work.
    Fault(Fault),
}

/// How a command ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Exited {
    /// What its parent would see.
    pub status: Status,
    /// Why it ended.
    pub cause: Cause,
    /// From spawn to exit, in microseconds of the guest's monotonic clock.
    pub duration_us: u64,
    /// Where its standard output can be read on.
    pub stdout_file: Option<OutputFile>,
    /// Where its standard error can be read on.
    pub stderr_file: Option<OutputFile>,
}

/// A long output, kept in a file in the guest. Later ones take its place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct OutputFile {
    /// An absolute path.
    pub path: String,
    /// How much of the output it holds, from the start, in bytes.
    pub bytes: u64,
    /// Whether that is all of it.
    pub complete: bool,
}

/// A process's last word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Status {
    /// It called `exit` with this code, 0 to 255.
    Code(u8),
    /// A signal of this number ended it.
    Signal(u8),
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Cause {
    /// By itself.
    Itself,
    /// Its time was up and the agent killed it.
    Deadline,
    /// The host cancelled it and the agent killed it.
    Cancelled,
    /// It was above its memory limit and the kernel killed it.
    Memory,
}

/// One entry of a folder. A symbolic link is told as itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Entry {
    /// The name's bytes, as the kernel has them; in a recursive listing the path below the listed folder.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub modified_unix_s: i64,
}
