// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens what outlives a server: the saved and suspended environments, and the ids of those that run.

use std::error::Error;

use tokio::task::spawn_blocking;

use crate::{
    config::{AtEnd, Folders, Settings},
    domain::repository::DestroyReason,
    lost::{Lost, RunningIds},
    saved::SavedMachines,
    server::Lasting,
};

/// Opens what earlier servers have left in the data folder, and logs what they have lost.
///
/// # Errors
/// The store of saved environments cannot be opened.
pub(super) async fn open(settings: &Settings, folders: &Folders) -> Result<Lasting, Box<dyn Error>> {
    let limits = settings.saved.limits(settings.image_store.reserve());
    let store = SavedMachines::open(&folders.data, limits).await?;
    // A client that started the server ends with it, and none of its environments outlives it.
    let is_shared = !settings.access.stdio;
    let (running, lost) = if is_shared { open_running(folders).await? } else { (None, Vec::new()) };
    for Lost { id, owner, reason } in &lost {
        match reason == &DestroyReason::Unsuspended {
            true => tracing::warn!(environment = %id, %owner, "an environment is lost: it could not be suspended"),
            false => tracing::warn!(environment = %id, %owner, "an environment is lost: its server was killed"),
        }
    }
    Ok(Lasting {
        store: Some(store),
        running,
        lost,
        suspends_idle: settings.saved.idle == AtEnd::Suspend,
        suspends_at_stop: is_shared && settings.saved.on_stop == AtEnd::Suspend,
    })
}

async fn open_running(folders: &Folders) -> Result<(Option<RunningIds>, Vec<Lost>), Box<dyn Error>> {
    let data = folders.data.clone();
    match spawn_blocking(move || RunningIds::open(&data)).await? {
        Ok((running, lost)) => Ok((Some(running), lost)),
        // Only the texts of later errors depend on it.
        Err(error) => {
            tracing::warn!(%error, "failed to open the ids of running environments");
            Ok((None, Vec::new()))
        }
    }
}
