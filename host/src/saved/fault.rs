// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Failures of the store of saved machines.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use tokio::task::JoinError;
use waggle_shared::disk_reserve::LowDisk;

use super::about::AboutFault;
use crate::error_code::ErrorCode;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to open the saved environments in {}; set another data folder with WAGGLE_DATA_DIR", path.display())]
pub struct OpenFault {
    pub(super) path: PathBuf,
    pub(super) source: StoreFault,
}

/// An operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// Another server has opened the store of the same data folder.
    #[error(
        "this server can neither save environments nor bring them back, because another server holds those of the \
         same data folder; stop that server and restart this one, or give each its own WAGGLE_DATA_DIR"
    )]
    Held,
    /// An operation on files failed.
    #[error("failed to {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The task panicked, or the server is shutting down.
    #[error("the task that changes the saved environments ended without a result")]
    Lost { source: JoinError },
}

/// A machine could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveFault {
    /// The owner has the maximum number of saved environments.
    #[error(
        "you have the maximum number of saved environments, {max} (WAGGLE_SAVED_PER_OWNER); remove one with \
         destroy_environment and its argument saved, or save under the name of one, which replaces it"
    )]
    TooMany { max: usize },
    /// The operator has disabled saving.
    #[error("the operator has disabled saving (WAGGLE_SAVED_PER_OWNER is 0)")]
    Disabled,
    /// The saved environments of all owners would occupy too much space.
    #[error(
        "all saved environments of the server together may occupy at most {} GiB (WAGGLE_SAVED_MAX_GB), and {}; remove \
         saved environments that you no longer need, or ask the server's operator",
        max_bytes / GIB,
        excess(*bytes)
    )]
    TooLarge {
        /// `None` if the others already occupy it.
        bytes: Option<u64>,
        max_bytes: u64,
    },
    /// The saved environments of the owner would occupy too much space.
    #[error(
        "your saved environments together may occupy at most {} MiB, half of the space for all callers \
         (WAGGLE_SAVED_MAX_GB), and {}; remove saved environments that you no longer need",
        share_bytes / MIB,
        excess(*bytes)
    )]
    ShareTooLarge {
        /// `None` if the others already occupy it.
        bytes: Option<u64>,
        share_bytes: u64,
    },
    /// The disk has less free space than its reserve.
    #[error("{0}; see WAGGLE_DISK_RESERVE_MB")]
    LowDisk(LowDisk),
    /// The disk is full.
    #[error("the server's disk is full")]
    DiskFull(#[source] Box<dyn Error + Send + Sync>),
    /// The files of the machine are not such as a machine has.
    #[error("the machine's files are invalid: {reason}: {}", path.display())]
    Files { reason: &'static str, path: PathBuf },
    /// The parameters of the environment have no valid about-file.
    #[error("failed to describe the environment: {0}")]
    About(String),
    /// An operation of the store failed.
    #[error(transparent)]
    Store(StoreFault),
}

impl StoreFault {
    /// Returns the code for programs. With [`ErrorCode::Internal`], the text is only for the operator.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Held => ErrorCode::SavingUnavailable,
            Self::Io { .. } | Self::Lost { .. } => ErrorCode::Internal,
        }
    }
}

/// Whether a failure, or one of its causes, is that the disk is full.
#[must_use]
pub fn is_disk_full(fault: &(dyn Error + 'static)) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    let mut next = Some(fault);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|cause| full.contains(&cause.kind())) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn excess(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("this one of {} MiB does not fit", bytes.div_ceil(MIB)),
        None => "they already occupy that much".to_owned(),
    }
}

impl SaveFault {
    /// Returns the code for programs. With [`ErrorCode::Internal`], the text is only for the operator.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooMany { .. } | Self::ShareTooLarge { .. } => ErrorCode::SavedLimitReached,
            Self::Disabled => ErrorCode::SavingUnavailable,
            Self::TooLarge { .. } => ErrorCode::SavedSpaceReached,
            Self::LowDisk(_) | Self::DiskFull(_) => ErrorCode::HostDiskLow,
            Self::Files { .. } | Self::About(_) => ErrorCode::Internal,
            Self::Store(fault) => fault.code(),
        }
    }
}

impl From<StoreFault> for SaveFault {
    fn from(fault: StoreFault) -> Self {
        if is_disk_full(&fault) { Self::DiskFull(fault.into()) } else { Self::Store(fault) }
    }
}

impl From<AboutFault> for SaveFault {
    fn from(fault: AboutFault) -> Self {
        Self::About(fault.to_string())
    }
}

/// Returns a function that adds the operation and the path to an error.
pub(super) fn io_fault(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreFault {
    let path = path.to_owned();
    move |source| StoreFault::Io { operation, path, source }
}
