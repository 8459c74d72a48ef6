// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a person can do next about a command that failed, where the failure alone does not say so.

use std::{error::Error, io, iter::successors, sync::Arc};

use nix::errno::Errno;

use crate::{
    causes::chain,
    images::{cache::PrepareFault, registry::RegistryFault},
    machines::OpenFault,
};

const LACKS: &str = "`waggle doctor` says all that machines need here, and how to get what is missing";
const NO_ROOM: &str = "make room (`waggle image prune --all` removes images that are not in use), or name folders on \
                       another disk by WAGGLE_DATA_DIR and WAGGLE_IMAGE_CACHE_DIR";
const NO_REGISTRY: &str = "without a registry: `./taskw images` in waggle's source tree builds images, and \
                           WAGGLE_IMAGE_PYTHON, WAGGLE_IMAGE_NODE and WAGGLE_IMAGE_SHELL name them";
const NO_LAYOUT: &str = "`./taskw images` in waggle's source tree builds images, `skopeo copy docker://IMAGE \
                         oci:FOLDER:latest` fetches one; `waggle doctor` says which images there are";

/// The next step, if there is one that helps.
#[must_use]
pub fn next_step(fault: &(dyn Error + 'static)) -> Option<&'static str> {
    let causes: Vec<_> = successors(Some(fault), |fault| (*fault).source()).collect();
    let is_missing =
        |cause: &&(dyn Error + 'static)| cause.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::NotFound);
    // In whatever way it is told: mkfs.ext4 says it in words.
    if chain(fault).contains(Errno::ENOSPC.desc()) {
        Some(NO_ROOM)
    } else if causes.iter().any(|cause| cause.is::<OpenFault>()) {
        Some(LACKS)
    } else {
        match causes.iter().find_map(|cause| preparing(&**cause))? {
            PrepareFault::Pull { source, .. } => is_unreachable(source).then_some(NO_REGISTRY),
            PrepareFault::Image(_) => causes.iter().any(is_missing).then_some(NO_LAYOUT),
            PrepareFault::TooLarge { .. }
            | PrepareFault::Cache { .. }
            | PrepareFault::CacheFile { .. }
            | PrepareFault::Lost { .. } => None,
        }
    }
}

/// Those that wait for one image share the fault.
fn preparing<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a PrepareFault> {
    cause.downcast_ref::<Arc<PrepareFault>>().map(AsRef::as_ref).or_else(|| cause.downcast_ref())
}

fn is_unreachable(fault: &RegistryFault) -> bool {
    matches!(fault, RegistryFault::Unreachable { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::merge::ImageFault;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to start")]
    struct Start {
        source: Box<dyn Error + Send + Sync>,
    }

    #[test]
    fn a_next_step_is_found_however_deep_its_cause_is() {
        let deep = |source: Box<dyn Error + Send + Sync>| next_step(&Start { source: Box::new(Start { source }) });
        assert_eq!(deep(Box::new(OpenFault::NoAgent)), Some(LACKS));
        assert_eq!(deep(Box::new(io::Error::from(Errno::ENOSPC))), Some(NO_ROOM));
        assert_eq!(deep("mkfs.ext4: No space left on device while writing".into()), Some(NO_ROOM));
        assert_eq!(deep(Box::new(io::Error::from(Errno::ENOENT))), None);
        let elsewhere = PrepareFault::Image(ImageFault::NotLocal { image: "python".into() });
        assert_eq!(deep(Box::new(Arc::new(elsewhere))), None);
    }
}
