// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The initramfs of QEMU guests: the agent as `/init`, the kernel's modules, and the boot configuration.
//!
//! Agent and modules are the same for all machines, so their archive is created once. A second archive with the
//! machine's boot configuration is appended.

use waggle_protocol::boot::{BOOT_CONFIG_PATH, BootConfig};

use super::{
    cpio::{Archive, TooLarge},
    modules::Module,
};

/// Folders that the agent needs, mostly mount points. The kernel creates `/dev/console` itself.
const FOLDERS: [&str; 9] = ["dev", "proc", "sys", "run", "tmp", "root", "image", "scratch", "modules"];

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
    module_paths: Vec<String>,
}

impl SharedRoot {
    /// Creates the archive of agent and modules.
    ///
    /// # Errors
    /// [`InitramfsFault::File`].
    pub(super) fn new(agent: &[u8], modules: &[Module]) -> Result<Self, InitramfsFault> {
        let fault = |source| InitramfsFault::File { source };
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.file("init", 0o755, agent).map_err(fault)?;
        for module in modules {
            archive.file(&format!("modules/{}", module.file_name), 0o600, &module.content).map_err(fault)?;
        }
        let module_paths = modules.iter().map(|module| format!("/modules/{}", module.file_name)).collect();
        Ok(Self { archive: archive.finish(), module_paths })
    }

    /// Returns the complete initramfs of one machine. Replaces `config.modules` with the paths of the shared modules.
    ///
    /// # Errors
    /// [`InitramfsFault`].
    pub(super) fn for_machine(&self, config: BootConfig) -> Result<Vec<u8>, InitramfsFault> {
        let config = BootConfig { modules: self.module_paths.clone(), ..config };
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
        let modules = [Module { file_name: "overlay.ko".into(), content: b"module bytes".to_vec() }];
        let shared = SharedRoot::new(b"agent bytes", &modules).unwrap();
        let config = BootConfig { working_directory: Some("/bee".into()), ..BootConfig::default() };
        let whole = shared.for_machine(config).unwrap();
        let agent = position(&whole, b"init\0").unwrap();
        let module = position(&whole, b"modules/overlay.ko\0").unwrap();
        let boot = position(&whole, b"waggle/boot\0").unwrap();
        assert!(agent < module && module < boot);
        let expected = BootConfig {
            modules: vec!["/modules/overlay.ko".into()],
            working_directory: Some("/bee".into()),
            ..BootConfig::default()
        };
        assert!(position(&whole, &expected.encode().unwrap()).is_some_and(|at| at > boot));
    }
}
