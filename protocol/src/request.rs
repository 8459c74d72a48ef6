// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's messages: a [`Request`] opens a call, and [`Input`]s may follow on the same stream.

use serde::{Deserialize, Serialize};

/// The first message of a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Request {
    /// Runs a command.
    Exec(Exec),
    /// Creates, replaces or appends to a file. Inputs with exactly `bytes` bytes follow.
    WriteFile {
        /// An absolute path, or one relative to the home directory.
        path: String,
        /// Length of the content that follows.
        bytes: u64,
        /// Permissions of the file. By default an existing file keeps its own and a new file gets 0644.
        mode: Option<u32>,
        /// True to append to the file.
        append: bool,
    },
    /// Reads a file, or a part of it.
    ReadFile {
        /// An absolute path, or one relative to the home directory.
        path: String,
        /// The offset and the largest length of the part; `None` for the whole file.
        range: Option<(u64, u64)>,
        /// Largest content to send. A longer one is refused before any of it is sent.
        bytes_max: u64,
    },
    /// Lists a folder.
    ListFiles {
        /// An absolute path, or one relative to the home directory.
        path: String,
        /// Largest number of entries to send. The reply reports whether there are more.
        entries_max: u32,
        /// True to list folders below as well. Links to folders are not followed.
        recursive: bool,
    },
    /// Sets the guest's clock.
    SetClock {
        /// Nanoseconds since the Unix epoch.
        unix_ns: u64,
    },
    /// Syncs the disks and powers the machine off.
    PowerOff,
}

/// A command to run. No shell is involved: `argv` is executed as it is.
///
/// Inputs follow with the bytes of the script and then of stdin, whose lengths the request states. The command starts
/// when all of them have arrived.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Exec {
    /// The program (an absolute path, or a name to look up in the search path) and its arguments. Must not be empty.
    pub argv: Vec<String>,
    /// Code to run from a temporary file, whose path becomes the last argument.
    pub script: Option<Script>,
    /// Length of stdin, in bytes.
    pub stdin_bytes: u64,
    /// Variables that add to or replace the environment that the agent gives to every command.
    pub env: Vec<(String, String)>,
    /// The working directory. By default the image's, or else the home directory.
    pub working_directory: Option<String>,
    /// The user to run it as.
    pub user: User,
    /// Timeout in milliseconds, after which everything that the call started is killed.
    pub timeout_ms: u64,
    /// Limits of its resources.
    pub limits: Limits,
    /// The rule for keeping outputs in files.
    pub keep: Keep,
}

/// The rule for keeping a long output in a file in the guest. It applies to stdout and stderr separately.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Keep {
    /// Only an output longer than this is kept, in bytes.
    pub above_bytes: u64,
    /// Largest part of the output to keep, in bytes.
    pub bytes_max: u64,
}

/// Limits for a command and everything that it starts, in addition to the limits of the machine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Limits {
    /// Memory in bytes. The kernel kills a command that exceeds it.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u32>,
    /// Number of open files per process.
    pub open_files: Option<u32>,
}

/// Code that follows a request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Script {
    /// The temporary file's extension, without a dot.
    pub extension: String,
    /// Length of the code, in bytes.
    pub bytes: u64,
}

/// The user that a command runs as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum User {
    /// `sandbox`, 1000:1000.
    Sandbox,
    /// The guest's root.
    Root,
}

/// A message that follows a request on its stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Input<'a> {
    /// The next bytes of the script, of stdin, or of the file; at most [`crate::CHUNK_BYTES_MAX`].
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// Kills everything that the call started; the last reply follows.
    Cancel,
}
