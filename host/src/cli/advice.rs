// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Hints for errors that do not already contain a hint.

use std::{error::Error, io, iter::successors, sync::Arc};

use nix::errno::Errno;
use waggle_images::{cache::PrepareFault, registry::RegistryFault};
use waggle_shared::{causes::chain, disk_reserve::LowDisk};

use crate::machines::OpenFault;

const LACKS: &str = "`waggle doctor` lists everything that machines need on this host, and how to install it";
const DISK_FULL: &str = "free disk space (`waggle image prune --all` removes images that are not in use), or set \
                       WAGGLE_DATA_DIR and WAGGLE_IMAGE_CACHE_DIR to folders on another disk";
const DISK_LOW: &str = "free disk space (`waggle image prune --all` removes images that are not in use), set \
                        WAGGLE_DATA_DIR and WAGGLE_IMAGE_CACHE_DIR to folders on another disk, or lower \
                        WAGGLE_DISK_RESERVE_MB";
const NO_REGISTRY: &str = "without a registry: build images with `./taskw images` in waggle's source tree, and set \
                           WAGGLE_IMAGE_PYTHON, WAGGLE_IMAGE_NODE and WAGGLE_IMAGE_SHELL to them";
const NO_LAYOUT: &str = "build images with `./taskw images` in waggle's source tree, or fetch one with `skopeo copy \
                         docker://IMAGE oci:FOLDER:latest`; `waggle doctor` lists the images that exist";

/// Returns a hint for the error, if there is one.
#[must_use]
pub fn next_step(fault: &(dyn Error + 'static)) -> Option<&'static str> {
    let causes: Vec<_> = successors(Some(fault), |fault| (*fault).source()).collect();
    let is_missing =
        |cause: &&(dyn Error + 'static)| cause.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::NotFound);
    let is_low_disk = |cause: &&(dyn Error + 'static)| {
        cause.is::<LowDisk>() || matches!(prepare_fault(*cause), Some(PrepareFault::LowDisk { .. }))
    };
    // Searches for the error's text, since mkfs.ext4 reports a full disk only as text.
    let text = chain(fault);
    if [Errno::ENOSPC, Errno::EDQUOT].iter().any(|full| text.contains(full.desc())) {
        Some(DISK_FULL)
    } else if causes.iter().any(is_low_disk) {
        Some(DISK_LOW)
    } else if causes.iter().any(|cause| cause.is::<OpenFault>()) {
        Some(LACKS)
    } else {
        match causes.iter().find_map(|cause| prepare_fault(&**cause))? {
            PrepareFault::Pull { source, .. } => is_unreachable(source).then_some(NO_REGISTRY),
            fault @ PrepareFault::Image(_) => {
                (fault.is_of_image() && causes.iter().any(is_missing)).then_some(NO_LAYOUT)
            }
            PrepareFault::TooLarge { .. }
            | PrepareFault::LowDisk { .. }
            | PrepareFault::Cache { .. }
            | PrepareFault::CacheFile { .. }
            | PrepareFault::NotInRegistry { .. }
            | PrepareFault::Lost { .. } => None,
        }
    }
}

/// Downcasts a cause to an image's fault. The fault is in an `Arc` if several environments may share the image's
/// preparation.
fn prepare_fault<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a PrepareFault> {
    cause.downcast_ref::<Arc<PrepareFault>>().map(AsRef::as_ref).or_else(|| cause.downcast_ref())
}

fn is_unreachable(fault: &RegistryFault) -> bool {
    matches!(fault, RegistryFault::Unreachable { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use waggle_images::merge::ImageFault;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to start")]
    struct Start {
        source: Box<dyn Error + Send + Sync>,
    }

    #[test]
    fn finds_the_hint_for_a_nested_cause() {
        let deep = |source: Box<dyn Error + Send + Sync>| next_step(&Start { source: Box::new(Start { source }) });
        assert_eq!(deep(Box::new(OpenFault::NoAgent)), Some(LACKS));
        assert_eq!(deep(Box::new(io::Error::from(Errno::ENOSPC))), Some(DISK_FULL));
        assert_eq!(deep("mkfs.ext4: No space left on device while writing".into()), Some(DISK_FULL));
        assert_eq!(deep(Box::new(io::Error::from(Errno::ENOENT))), None);
        let elsewhere = PrepareFault::Image(ImageFault::NotLocal { image: "python".into() });
        assert_eq!(deep(Box::new(Arc::new(elsewhere))), None);
    }
}
