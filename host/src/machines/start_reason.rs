// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the reason of a failed start that a client gets to see.

use std::{error::Error, io, iter::successors, sync::Arc};

use nix::errno::Errno;
use waggle_images::{cache::PrepareFault, registry::RegistryFault};
use waggle_shared::{causes::chain, disk_reserve::LowDisk};

use super::owner::BootFault;
use crate::domain::start_reason::StartReason;

/// Returns the reason of a fault.
pub(super) fn reason_of(fault: &(dyn Error + 'static)) -> StartReason {
    let causes: Vec<_> = successors(Some(fault), |fault| (*fault).source()).collect();
    let is_missing = |cause: &&(dyn Error + 'static)| {
        cause.downcast_ref().is_some_and(|cause: &io::Error| cause.kind() == io::ErrorKind::NotFound)
    };
    if let Some(low) = causes.iter().find_map(|cause| cause.downcast_ref::<LowDisk>()) {
        return StartReason::LowDisk(*low);
    }
    if causes.iter().any(|cause| cause.downcast_ref().is_some_and(is_full)) {
        return StartReason::FullDisk;
    }
    let prepare = causes.iter().find_map(|cause| {
        // The fault is in an `Arc` if several environments may share the image's preparation.
        cause.downcast_ref::<Arc<PrepareFault>>().map(AsRef::as_ref).or_else(|| cause.downcast_ref())
    });
    if let Some(fault) = prepare {
        return match fault {
            PrepareFault::Image(_) if !fault.is_of_image() => StartReason::Other,
            PrepareFault::Image(_) if causes.iter().any(is_missing) => StartReason::ImageMissing,
            PrepareFault::Image(_) => StartReason::ImageInvalid,
            PrepareFault::NotInRegistry { .. } => StartReason::ImageMissing,
            PrepareFault::TooLarge { .. } => StartReason::ImageTooLarge,
            PrepareFault::Pull { source, .. } => registry(source),
            PrepareFault::LowDisk { source, .. } => StartReason::LowDisk(*source),
            PrepareFault::Cache { .. } | PrepareFault::CacheFile { .. } | PrepareFault::Lost { .. } => {
                StartReason::Other
            }
        };
    }
    // mkfs.ext4 reports a full disk only as text.
    if chain(fault).contains(Errno::ENOSPC.desc()) {
        return StartReason::FullDisk;
    }
    match causes.iter().find_map(|cause| cause.downcast_ref()) {
        Some(BootFault::TimedOut { .. }) => StartReason::TimedOut,
        Some(BootFault::Ended { .. } | BootFault::Panicked) => StartReason::Ended,
        Some(BootFault::Cancelled) => StartReason::Cancelled,
        Some(BootFault::Listen { .. } | BootFault::Spawn { .. } | BootFault::Connect { .. }) | None => {
            StartReason::Other
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn registry(fault: &RegistryFault) -> StartReason {
    match fault {
        RegistryFault::Unreachable { .. } | RegistryFault::Untrusted { .. } | RegistryFault::NotPublic { .. } => {
            StartReason::RegistryUnreachable
        }
        RegistryFault::Unauthorized { .. } | RegistryFault::Realm { .. } | RegistryFault::NoToken { .. } => {
            StartReason::RegistryDenied
        }
        RegistryFault::NotFound { .. } => StartReason::RegistryWithoutImage,
        RegistryFault::NoImage { .. } => StartReason::ImageInvalid,
        RegistryFault::TooLarge { .. } => StartReason::ImageTooLarge,
        RegistryFault::Tls { .. }
        | RegistryFault::Address { .. }
        | RegistryFault::Status { .. }
        | RegistryFault::Stalled { .. }
        | RegistryFault::Slow { .. }
        | RegistryFault::Corrupt { .. }
        | RegistryFault::Blob { .. } => StartReason::RegistryFailed,
        RegistryFault::Write { .. } => StartReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use waggle_images::cache::ImageStore;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to start")]
    struct Start {
        source: Box<dyn Error + Send + Sync>,
    }

    #[test]
    fn finds_the_reason_in_a_nested_cause() {
        let deep = |source: Box<dyn Error + Send + Sync>| reason_of(&Start { source: Box::new(Start { source }) });
        let low = LowDisk::Inodes { free: 3 };
        let prepare = PrepareFault::LowDisk { folder: "/x".into(), source: low };
        assert_eq!(deep(Box::new(Arc::new(prepare))), StartReason::LowDisk(low));
        assert_eq!(deep(Box::new(low)), StartReason::LowDisk(low));
        for full in [Errno::ENOSPC, Errno::EDQUOT] {
            assert_eq!(deep(Box::new(io::Error::from(full))), StartReason::FullDisk);
        }
        assert_eq!(deep("mkfs.ext4: No space left on device".into()), StartReason::FullDisk);
        // The cache folder, not the image, is missing.
        let cache = ImageStore::open("/proc/no such folder").unwrap_err();
        assert!(matches!(cache, PrepareFault::Image(_)), "{cache:?}");
        assert_eq!(deep(Box::new(Arc::new(cache))), StartReason::Other);
        let write =
            |digest: &str, errno| RegistryFault::Write { digest: digest.into(), source: io::Error::from(errno) };
        let pull = PrepareFault::Pull { image: "x".into(), source: Box::new(write("x", Errno::EDQUOT)) };
        assert_eq!(deep(Box::new(pull)), StartReason::FullDisk);
        let pull = PrepareFault::Pull { image: "x".into(), source: Box::new(write("x", Errno::EIO)) };
        assert_eq!(deep(Box::new(pull)), StartReason::Other);
        let pull = RegistryFault::NotFound { image: "x".into() };
        let pull = PrepareFault::Pull { image: "x".into(), source: Box::new(pull) };
        assert_eq!(deep(Box::new(pull)), StartReason::RegistryWithoutImage);
        assert_eq!(deep(Box::new(BootFault::Panicked)), StartReason::Ended);
        assert_eq!(deep("another cause".into()), StartReason::Other);
    }
}
