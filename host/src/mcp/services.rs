// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The services that tools call, and the memory budget of the tools' results.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use waggle_images::reference::ImageRef;

use super::{results::RESULT_BYTES_MAX, resumed_note::ResumedNote};
use crate::{
    budget::{Budget, Reservation},
    domain::{
        allowed_images::AllowedImages, environment_id::EnvironmentId, machine_size::SizeLimits, principal::Principal,
        runtime::ByRuntime,
    },
    service::{environments::Environments, execution::Execution, fault::CallerFault, filesystem::Filesystem},
};

/// Maximum memory of the results that are being created or written, in bytes: enough for 32 results of the maximum
/// size.
const RESULTS_BYTES: usize = 64 * 1024 * 1024;

/// Each caller's own reserve: enough for one result of the maximum size.
const OWN_RESULTS_BYTES: usize = RESULT_BYTES_MAX;

/// Maximum time that a result waits for memory while other results are unread.
const RESERVATION_TIMEOUT: Duration = Duration::from_secs(30);

/// The services behind the tools. Each tool is a method, in `environment_tools`, `execution_tools` or `file_tools`.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) environments: Arc<Environments>,
    pub(super) execution: Execution,
    pub(super) filesystem: Filesystem,
    pub(super) defaults: Defaults,
    results: Budget,
}

/// The defaults for arguments that a client leaves out.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The image of each runtime.
    pub images: ByRuntime<ImageRef>,
    /// The images that clients may choose.
    pub allowed_images: AllowedImages,
    /// The sizes of machines.
    pub sizes: SizeLimits,
    /// The time without a call after which an environment is destroyed.
    pub idle_timeout: Duration,
    /// Maximum time that a fork waits for the calls in its source: the longest time that a call can run.
    pub fork_wait: Duration,
}

impl Services {
    pub(super) fn new(
        environments: Arc<Environments>,
        execution: Execution,
        filesystem: Filesystem,
        defaults: Defaults,
    ) -> Self {
        Self { environments, execution, filesystem, defaults, results: Budget::new(RESULTS_BYTES, OWN_RESULTS_BYTES) }
    }

    /// Returns the note for a result of an environment that was suspended, once.
    pub(super) fn resumed_note(&self, owner: &Principal, id: EnvironmentId) -> ResumedNote {
        self.environments.untold_resume(owner, id).into()
    }

    /// Reserves memory for a result and its written form, in bytes.
    pub(super) async fn reserve_result(&self, owner: &Principal, bytes: usize) -> Result<Reservation, CallerFault> {
        let reservation = timeout(RESERVATION_TIMEOUT, self.results.reserve(owner, bytes)).await;
        reservation.map_err(|_elapsed| CallerFault::ResultsUnread)
    }
}
