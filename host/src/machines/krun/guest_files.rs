// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The files and folders of the guest's initial root.

/// Path of the guest's first process. The libraries pass this path on the kernel's command line.
pub(super) const INIT: &str = "/init.krun";
/// Folders of the initial root: mount points, and the folder of the boot configuration. The guest cannot create others.
pub(super) const FOLDERS: [&str; 9] =
    ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/image", "/scratch", "/waggle"];
pub(super) const FOLDER_MODE: u32 = 0o755;
pub(super) const AGENT_MODE: u32 = 0o755;
pub(super) const BOOT_MODE: u32 = 0o600;

/// The contents of the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestFiles {
    pub(super) agent: &'static [u8],
    pub(super) boot: &'static [u8],
}
