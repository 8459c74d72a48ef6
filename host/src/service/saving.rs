// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The server's store of saved machines, as far as it has one.

use std::sync::Arc;

use super::{
    callers::Callers,
    fault::{CallerFault, ResumeFault},
};
use crate::{
    domain::{
        machine::{Machines, Snapshot, SnapshotFault},
        principal::Principal,
        saved::SavedKey,
    },
    saved::{OpenSaved, SavedMachines},
};

/// Where and when this server saves machines.
#[derive(Clone, Debug, Default)]
pub struct Saving {
    /// `None` if the server saves nothing.
    pub store: Option<SavedMachines>,
    /// Whether idle environments are suspended, and not destroyed.
    pub suspends_idle: bool,
    /// The callers of the server, who share the space of saved environments.
    pub callers: Callers,
}

/// The state that a machine starts from.
#[derive(Clone, Debug)]
pub(super) struct SavedState {
    pub(super) snapshot: Arc<dyn Snapshot>,
    /// The files of the snapshot, which must exist as long as a machine uses them.
    pub(super) files: Option<Arc<OpenSaved>>,
}

impl Saving {
    /// Returns the store.
    pub(super) fn store(&self) -> Result<&SavedMachines, CallerFault> {
        let why = "this server has no folder for saved environments";
        self.store.as_ref().ok_or_else(|| CallerFault::CannotSave { why: why.to_owned() })
    }

    /// Opens a saved machine.
    pub(super) async fn open(
        &self,
        machines: &dyn Machines,
        owner: &Principal,
        key: &SavedKey,
    ) -> Result<SavedState, ResumeFault> {
        let store = self.store.as_ref().ok_or(ResumeFault::Missing)?;
        let files = store.open_saved(owner, key).await.map_err(ResumeFault::Store)?.ok_or(ResumeFault::Missing)?;
        let snapshot = SavedState::read(machines, &files).await.map_err(ResumeFault::Snapshot)?;
        Ok(SavedState { snapshot, files: Some(Arc::new(files)) })
    }
}

impl SavedState {
    /// Reads the snapshot of a saved machine.
    pub(super) async fn read(machines: &dyn Machines, files: &OpenSaved) -> Result<Arc<dyn Snapshot>, SnapshotFault> {
        machines.read_snapshot(files.machine_folder()).await
    }
}
