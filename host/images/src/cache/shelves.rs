// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two shelves of the cache: one for the images of the operator, and one for images that only clients have named.
//!
//! A client's image may come from a registry that the client controls, and its manifest may then name the digest of any
//! blob. On the operator's shelf it would get that blob, of an image to which the client has no access, without a
//! download. All callers could use a reference that the operator has pulled with credentials. On a shelf
//! of their own, clients find only what anyone can pull.

use std::{path::Path, sync::Arc};

use waggle_shared::disk_reserve::DiskReserve;

use super::{
    evict::{self, EvictionRules, Removed},
    fault::PrepareFault,
    folder::Cache,
};
use crate::reference::PullRights;

/// The folder of the clients' shelf, in that of the operator's.
const CLIENTS_FOLDER: &str = "clients";

/// The two shelves.
#[derive(Debug)]
pub(super) struct Shelves {
    pub(super) operator: Arc<Cache>,
    pub(super) clients: Arc<Cache>,
}

impl Shelves {
    pub(super) fn open(folder: &Path, reserve: DiskReserve) -> Result<Self, PrepareFault> {
        let operator = Arc::new(Cache::open(folder.to_owned(), reserve)?);
        Ok(Self { operator, clients: Arc::new(Cache::open(folder.join(CLIENTS_FOLDER), reserve)?) })
    }

    /// Returns the shelf of images that are pulled with these rights.
    pub(super) fn of(&self, rights: PullRights) -> &Arc<Cache> {
        match rights {
            PullRights::Operator => &self.operator,
            PullRights::Public => &self.clients,
        }
    }

    pub(super) fn all(&self) -> [&Cache; 2] {
        [&self.operator, &self.clients]
    }

    /// Evicts images by the rules. Clients' images get the space that the operator's leave, so they never evict one of
    /// those.
    pub(super) fn evict(&self, rules: &EvictionRules) -> Removed {
        self.by_rules(rules, evict::evict)
    }

    /// Removes files from each shelf by its own rules.
    pub(super) fn by_rules(
        &self,
        rules: &EvictionRules,
        remove: impl Fn(&Cache, &EvictionRules) -> Removed,
    ) -> Removed {
        let mut removed = remove(&self.operator, rules);
        let left = rules.bytes_max.map(|max| max.saturating_sub(self.operator.bytes()));
        let bytes_max = rules.clients_bytes_max.into_iter().chain(left).min();
        removed += remove(&self.clients, &EvictionRules { bytes_max, ..*rules });
        removed
    }
}
