// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the host sends: one [`Request`] opens a call, [`Input`]s may follow on the same stream.

use serde::{Deserialize, Serialize};

/// The first message of a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Request {
    /// Run a command; its stdin is empty. If it has a script, inputs with exactly its bytes follow.
    Exec(Exec),
    /// Replace or make a file. Inputs with exactly `bytes` bytes follow.
    WriteFile {
        /// Absolute, or relative to the home.
        path: String,
        /// Length of the content.
        bytes: u64,
        /// Permissions of the file, if it is new.
        mode: u32,
    },
    /// Read a whole file.
    ReadFile {
        /// Absolute, or relative to the home.
        path: String,
        /// A larger file is refused before any of it is sent.
        bytes_max: u64,
    },
    /// List a folder, one level deep.
    ListFiles {
        /// Absolute, or relative to the home.
        path: String,
        /// More entries than that are left out, and the reply says so.
        entries_max: u32,
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
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Exec {
    /// Program (absolute, or looked up in the search path) and arguments. Never empty.
    pub argv: Vec<String>,
    /// Code to run from a temporary file, whose path becomes the last argument.
    pub script: Option<Script>,
    /// Variables that are added to the environment, or replace what the agent gives every command.
    pub env: Vec<(String, String)>,
    /// Who runs it.
    pub user: User,
    /// Everything that the call started is killed when this has passed, in milliseconds.
    pub timeout_ms: u64,
}

/// Code that follows a request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Script {
    /// The temporary file's extension, without a dot.
    pub extension: String,
    /// Length of the code, which inputs bring before anything else.
    pub bytes: u64,
}

/// Who runs a command.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum User {
    /// `sandbox`, 1000:1000.
    Sandbox,
    /// The guest's root.
    Root,
}

/// What follows a request on its stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Input<'a> {
    /// The next bytes of the script, or of the file; at most [`crate::CHUNK_BYTES_MAX`].
    Data(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// Kill everything that the call started, then answer with the last reply.
    Cancel,
}
