// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The image of a machine.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use waggle_images::cache::{Lease, PreparedImage};

/// The image of a machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct MachineImage {
    /// The file of the root file system.
    pub(super) erofs: PathBuf,
    /// The path of the same file in the cache.
    pub(super) cached: PathBuf,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_directory: Option<String>,
    /// The version of the protocol and the path of the image's own agent.
    pub(super) agent: Option<(u32, String)>,
    /// Prevents the eviction of the file. `None` if the file belongs to a saved machine.
    #[serde(skip)]
    pub(super) _lease: Option<Arc<Lease>>,
}

impl From<PreparedImage> for MachineImage {
    fn from(image: PreparedImage) -> Self {
        let PreparedImage { erofs, env, working_directory, agent, lease } = image;
        let agent = agent.map(|agent| (agent.protocol_version, agent.path));
        Self { cached: erofs.clone(), erofs, env, working_directory, agent, _lease: Some(lease) }
    }
}
