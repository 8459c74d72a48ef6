// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the host sends: one [`Request`] opens a call, [`Input`]s may follow on the same stream.

use serde::{Deserialize, Serialize};

/// The first message of a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Request {
    /// Run a command.
    Exec(Exec),
    /// Replace or make a file, or add to one. Inputs with exactly `bytes` bytes follow.
    WriteFile {
        /// Absolute, or relative to the home.
        path: String,
        /// Length of what follows.
        bytes: u64,
        /// Permissions of the file; by default an existing one keeps its own and a new one gets 0644.
        mode: Option<u32>,
        /// Whether the bytes go behind those that the file has.
        append: bool,
    },
    /// Read a file, or a part of one.
    ReadFile {
        /// Absolute, or relative to the home.
        path: String,
        /// The part: first byte and most bytes. The whole file if there is none.
        range: Option<(u64, u64)>,
        /// More than that is refused before any of it is sent.
        bytes_max: u64,
    },
    /// List a folder.
    ListFiles {
        /// Absolute, or relative to the home.
        path: String,
        /// More entries than that are left out, and the reply says so.
        entries_max: u32,
        /// Whether folders below are listed as well; links to folders are not followed.
        recursive: bool,
    },
    /// Set the guest's clock.
    SetClock {
        /// Nanoseconds since the Unix epoch.
        unix_ns: u64,
    },
    /// Write everything to the disks and power the machine off.
    PowerOff,
}

/// A command to run. No shell is involved: `argv` is executed as it is.
///
/// Inputs follow with the script's bytes, then with stdin's, both counted in advance. The command starts when all of it
/// has arrived.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Exec {
    /// Program (absolute, or looked up in the search path) and arguments. Never empty.
    pub argv: Vec<String>,
    /// Code to run from a temporary file, whose path becomes the last argument.
    pub script: Option<Script>,
    /// Length of stdin, in bytes.
    pub stdin_bytes: u64,
    /// Variables that are added to the environment, or replace what the agent gives every command.
    pub env: Vec<(String, String)>,
    /// Where it starts; if there is none, where the image says, else in the home.
    pub working_directory: Option<String>,
    /// Who runs it.
    pub user: User,
    /// Everything that the call started is killed when this has passed, in milliseconds.
    pub timeout_ms: u64,
    /// What it may use.
    pub limits: Limits,
    /// Which outputs are kept in a file.
    pub keep: Keep,
}

/// When an output is kept in a file in the guest, where it can be read on. Holds for stdout and stderr, each by itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Keep {
    /// Only one that is longer than this, in bytes.
    pub above_bytes: u64,
    /// No more than that of it, in bytes.
    pub bytes_max: u64,
}

/// What a command and all that it starts may use. A machine's own limits hold besides.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Limits {
    /// Memory in bytes; above it the kernel kills the command.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Open files of one process.
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

/// Who runs a command.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum User {
    /// `sandbox`, 1000:1000.
    Sandbox,
    /// The guest's root.
    Root,
}

/// What follows a request on its stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Input<'a> {
    /// The next bytes of the script, of stdin, or of the file; at most [`crate::CHUNK_BYTES_MAX`].
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// Kill everything that the call started, then answer with the last reply.
    Cancel,
}
