// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The initramfs of QEMU guests: the agent as `/init`, and the boot configuration.
//!
//! The agent is the same for all machines, so its archive is created once. A second archive with the machine's boot
//! configuration is appended.

use waggle_protocol::boot::{BOOT_CONFIG_PATH, BootConfig};

use super::cpio::{Archive, TooLarge};

/// Folders that the agent needs, mostly mount points. The kernel creates `/dev/console` itself.
const FOLDERS: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "root", "image", "scratch"];

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsFault {
    #[error("failed to add a file to the initramfs")]
    File { source: TooLarge },
    #[error("failed to encode the boot configuration")]
    Encode { source: postcard::Error },
}

/// The archive that all machines share.
#[derive(Debug)]
pub(super) struct SharedRoot {
    archive: Vec<u8>,
}

impl SharedRoot {
    /// Creates the archive with the agent.
    ///
    /// # Errors
    /// [`InitramfsFault::File`].
    pub(super) fn new(agent: &[u8]) -> Result<Self, InitramfsFault> {
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.file("init", 0o755, agent).map_err(|source| InitramfsFault::File { source })?;
        Ok(Self { archive: archive.finish() })
    }

    /// Returns the complete initramfs of one machine.
    ///
    /// # Errors
    /// [`InitramfsFault`].
    pub(super) fn for_machine(&self, config: &BootConfig) -> Result<Vec<u8>, InitramfsFault> {
        let encoded = config.encode().map_err(|source| InitramfsFault::Encode { source })?;
        let path = BOOT_CONFIG_PATH.trim_start_matches('/');
        let mut own = Archive::default();
        if let Some((folder, _)) = path.rsplit_once('/') {
            own.folder(folder);
        }
        own.file(path, 0o600, &encoded).map_err(|source| InitramfsFault::File { source })?;
        let own = own.finish();
        let mut whole = Vec::with_capacity(self.archive.len() + own.len());
        whole.extend_from_slice(&self.archive);
        whole.extend_from_slice(&own);
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
        haystack.windows(needle.len()).position(|window| window == needle)
    }

    #[test]
    fn shared_archive_comes_first() {
        let shared = SharedRoot::new(b"agent bytes").unwrap();
        let config = BootConfig { working_directory: Some("/bee".into()), ..BootConfig::default() };
        let whole = shared.for_machine(&config).unwrap();
        let agent = position(&whole, b"init\0").unwrap();
        let boot = position(&whole, b"waggle/boot\0").unwrap();
        assert!(agent < boot);
        assert!(position(&whole, &config.encode().unwrap()).is_some_and(|at| at > boot));
    }
}
