// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's messages on a call's stream: any number of replies, the last of which ends the call.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// One message of the agent. Variants marked "last" end the call.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Reply<'a> {
    /// The next bytes of the command's standard output; at most [`crate::CHUNK_BYTES_MAX`].
    Stdout(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// The next bytes of the command's standard error; at most [`crate::CHUNK_BYTES_MAX`].
    Stderr(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// The next bytes of the file; at most [`crate::CHUNK_BYTES_MAX`].
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// The folder's next entries. The names of all entries of a call ascend, byte by byte.
    Entries(Vec<Entry>),
    /// Last: the command has ended.
    Exited(Exited),
    /// Last: the file is written.
    Written {
        /// Number of bytes written, which is less than the length of the file if the bytes were appended.
        bytes: u64,
    },
    /// Last: the requested part of the file has been sent.
    FileEnd {
        /// Size of the whole file when the agent opened it; 0 for files that the kernel generates.
        size: u64,
    },
    /// Last: the folder was listed.
    ListEnd {
        /// Number of the folder's entries, in a recursive listing with those of its subfolders.
        total: u64,
        /// True if `total` is a minimum, because some subfolders were not read.
        total_is_minimum: bool,
        /// True if entries were left out that no value of `after` leads to: those of folders that are too deep.
        too_deep: bool,
        /// The value of `after` with which a call continues this listing; `None` if no entries follow.
        #[serde(with = "serde_bytes")]
        next: Option<Vec<u8>>,
    },
    /// Last: the clock is set.
    ClockSet {
        /// The number of background processes that the OOM killer has killed since the machine started. A background
        /// process is one whose call has ended.
        background_memory_kills: u64,
    },
    /// Last: the request is done.
    Done,
    /// Last: the request failed.
    Fault(Fault),
}

/// The end of a command.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Exited {
    /// The exit status, as the parent process sees it.
    pub status: Status,
    pub cause: Cause,
    /// Time from spawn to exit, in microseconds of the guest's monotonic clock.
    pub duration_us: u64,
    /// The file with the standard output, if the output was kept.
    pub stdout_file: Option<OutputFile>,
    /// The file with the standard error, if the output was kept.
    pub stderr_file: Option<OutputFile>,
    /// The absolute path of the file that receives the further output of processes that the command left running;
    /// `None` if no process has the command's stdout or stderr open. The file's size is limited; the end of the output
    /// is kept.
    pub background_file: Option<String>,
    /// The system calls of the command that the filter refused; at most [`crate::REFUSED_MAX`].
    pub refused: Vec<RefusedCall>,
    /// See [`Reply::ClockSet`].
    pub background_memory_kills: u64,
}

impl Exited {
    /// The end of a command about which there is nothing else to tell.
    #[must_use]
    pub const fn new(status: Status, cause: Cause, duration_us: u64) -> Self {
        Self {
            status,
            cause,
            duration_us,
            stdout_file: None,
            stderr_file: None,
            background_file: None,
            refused: Vec::new(),
            background_memory_kills: 0,
        }
    }
}

/// A system call that the filter refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct RefusedCall {
    /// The name of the system call, such as `unshare`; at most 32 lower-case letters, digits and underscores.
    pub name: String,
    /// The number of refusals.
    pub count: u32,
}

/// A long output, kept in a file in the guest. The agent keeps only the newest files of this kind.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct OutputFile {
    /// An absolute path.
    pub path: String,
    /// Length of the kept part, in bytes. The part begins at the start of the output.
    pub bytes: u64,
    /// True if the file contains the whole output.
    pub complete: bool,
}

/// The exit status of a process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Status {
    /// The code that the process passed to `exit`, 0 to 255.
    Code(u8),
    /// The number of the signal that killed the process.
    Signal(u8),
}

/// The cause of a command's end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Cause {
    /// The command ended by itself.
    Itself,
    /// The agent killed the command after its timeout.
    Deadline,
    /// The agent killed the command because the host cancelled the call.
    Cancelled,
    /// The kernel killed the command because it exceeded its memory limit.
    Memory,
}

/// One entry of a folder. Symbolic links are not followed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Entry {
    /// The name, in the bytes that the kernel reports. In a recursive listing, the path relative to the listed folder.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last modification, in seconds since the Unix epoch.
    pub modified_unix_s: i64,
}
