// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's messages: a [`Request`] opens a call, and [`Input`]s may follow on the same stream.

use serde::{Deserialize, Serialize};

/// The first message of a call's stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Request {
    /// Runs a command.
    Exec(Exec),
    /// Creates, replaces or appends to a file. [`Input::Data`] messages with exactly `bytes` bytes in total follow.
    WriteFile {
        /// An absolute path, or one relative to the home directory; `~` at its start is the home directory. Names that
        /// are not UTF-8 are in the form of [`crate::name`].
        path: String,
        /// Length of the content that follows.
        bytes: u64,
        /// Permissions of the file. By default an existing file keeps its permissions, and a new file gets 0644.
        mode: Option<u32>,
        append: bool,
    },
    /// Reads a file, or a part of it.
    ReadFile {
        /// An absolute path, or one relative to the home directory; `~` at its start is the home directory. Names that
        /// are not UTF-8 are in the form of [`crate::name`].
        path: String,
        /// The offset and the maximum length of the part; `None` for the whole file.
        range: Option<(u64, u64)>,
        /// Limit of the content, in bytes. If the content is longer, the call fails before any content is sent.
        bytes_max: u64,
    },
    /// Lists a folder.
    ListFiles {
        /// An absolute path, or one relative to the home directory; `~` at its start is the home directory. Names that
        /// are not UTF-8 are in the form of [`crate::name`].
        path: String,
        /// Only entries whose names sort after these bytes are sent; empty for all.
        #[serde(with = "serde_bytes")]
        after: Vec<u8>,
        /// Maximum number of entries to send. The last reply reports whether more entries follow.
        entries_max: u32,
        /// True to list subfolders as well. Links to folders are not followed.
        recursive: bool,
    },
    /// Corrects the guest's clock: gradually if it is off by less than a second, otherwise at once.
    SetClock {
        /// Nanoseconds since the Unix epoch.
        unix_ns: u64,
    },
    /// Syncs the disks and powers the machine off.
    PowerOff,
    /// Prepares for a copy of the machine: the agent ends the programs that it runs by itself, and writes all data to
    /// the disks. From then on, the end of the link does not end the machine: the agent dials again, until a host has
    /// welcomed it and made a call. Ends with [`Reply::Done`](crate::Reply::Done).
    Hold,
}

/// A command to run. No shell is involved: `argv` is executed unchanged.
///
/// The bytes of the script and then of stdin follow as [`Input::Data`]; the request states their lengths. The command
/// starts when all bytes have arrived.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Exec {
    /// The program (an absolute path, or a name to look up in the search path) and its arguments. Must not be empty.
    pub argv: Vec<String>,
    /// Code to run from a temporary file. The agent appends the arguments with which the interpreter runs the file.
    pub script: Option<Script>,
    /// Length of stdin, in bytes.
    pub stdin_bytes: u64,
    /// Environment variables in addition to those that the agent gives to every command. These variables override those
    /// of the agent.
    pub env: Vec<(String, String)>,
    /// The working directory. The default is the working directory of the image, or the home directory if the image has
    /// none.
    pub working_directory: Option<String>,
    pub user: User,
    /// Timeout in milliseconds, after which everything that the call started is asked to end, and killed a second
    /// later.
    pub timeout_ms: u64,
    pub limits: Limits,
    pub keep: Keep,
}

/// The rule for keeping a long output in a file in the guest. It applies to stdout and stderr separately.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Keep {
    /// An output is kept only if it is longer than this number of bytes.
    pub above_bytes: u64,
    /// Limit of the part of the output that is kept, in bytes.
    pub bytes_max: u64,
}

/// Limits for a command and everything that it starts, in addition to the limits of the machine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Limits {
    /// Memory in bytes. The kernel kills a command that exceeds this limit.
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
    /// The agent's program that makes the interpreter run the code as if its file were in the working directory.
    /// Without a loader, the path of the code's file is the last argument.
    pub loader: Option<Loader>,
}

/// The programs of the agent that load code.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Loader {
    /// For Python 3.
    Python,
    /// For Node.js.
    Node,
}

/// The user that a command runs as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum User {
    /// The user with the number 1000: the image's own, or else `sandbox`.
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
    /// Kills everything that the call started. The agent then sends the last reply.
    Cancel,
}
