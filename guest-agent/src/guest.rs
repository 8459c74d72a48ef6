// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of an agent, chosen by its caller.

use std::path::PathBuf;

use waggle_protocol::Origin;

use crate::sandbox::SandboxSpawner;

#[derive(Debug)]
pub struct Guest {
    pub origin: Origin,
    /// The root of the file system that calls use: `/` in a machine, any folder elsewhere.
    pub root: PathBuf,
    pub mode: Mode,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// The image's working directory for commands, as an absolute path.
    pub working_directory: Option<String>,
}

/// Selects the user that runs the calls, and whether commands run in a sandbox.
#[derive(Debug)]
pub enum Mode {
    /// For a dedicated machine: calls run in a sandbox as the user `sandbox`, or as root on request. The agent must be
    /// root.
    Sandbox(SandboxSpawner),
    /// For a shared machine: calls run as the user that runs the agent, and the machine's clock is not changed.
    Caller,
}
