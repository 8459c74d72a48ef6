// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Why a suspended or saved environment did not come back.

use crate::{
    domain::{
        machine::{SnapshotFault, StartFault},
        start_reason::StartReason,
    },
    error_code::ErrorCode,
    saved::StoreFault,
};

/// Why a suspended or saved environment did not come back.
#[derive(Debug, thiserror::Error)]
pub enum ResumeFault {
    #[error(transparent)]
    Start(StartFault),
    #[error(transparent)]
    Snapshot(SnapshotFault),
    #[error(transparent)]
    Store(StoreFault),
    /// The machine has started, but the saved state could not be removed, so the machine was stopped.
    #[error("failed to remove the saved state after the start")]
    Remove(#[source] StoreFault),
    /// The store has no entry with this key.
    #[error("the saved state no longer exists")]
    Missing,
}

impl ResumeFault {
    /// Returns the text for the client, without paths of the host.
    #[must_use]
    pub fn for_client(&self) -> String {
        match self {
            Self::Start(fault) => fault.for_client(),
            Self::Store(StoreFault::Io { .. } | StoreFault::Lost { .. }) => "its files could not be read".to_owned(),
            Self::Snapshot(_) | Self::Store(StoreFault::Held) | Self::Remove(_) | Self::Missing => self.to_string(),
        }
    }

    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::Start(fault) if matches!(fault.reason, StartReason::LowDisk(_)) => ErrorCode::HostDiskLow,
            Self::Store(StoreFault::Held) => ErrorCode::SavingUnavailable,
            Self::Snapshot(SnapshotFault::Damaged { .. }) => ErrorCode::SavedDamaged,
            Self::Start(_) | Self::Snapshot(_) | Self::Store(_) | Self::Remove(_) | Self::Missing => {
                ErrorCode::ResumeFailed
            }
        }
    }
}
