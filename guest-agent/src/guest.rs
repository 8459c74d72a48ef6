// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest that an agent serves: the settings that its starter chooses.

use std::path::PathBuf;

use waggle_protocol::Origin;

use crate::sandbox::SandboxSpawner;

/// Settings of one agent.
#[derive(Debug)]
pub struct Guest {
    /// Where the agent came from.
    pub origin: Origin,
    /// The file system that calls see: `/` in a machine, any folder elsewhere.
    pub root: PathBuf,
    /// The user that calls run as.
    pub mode: Mode,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// Absolute path of the folder in which the image wants commands to start.
    pub working_directory: Option<String>,
}

/// The user that calls run as, and where.
#[derive(Debug)]
pub enum Mode {
    /// In a machine: the user `sandbox`, or the guest's root if a call asks for it, in a sandbox. The agent must be
    /// root.
    Sandbox(SandboxSpawner),
    /// The user that runs the agent, on a machine that is not the agent's own: its clock stays as it is.
    Caller,
}
