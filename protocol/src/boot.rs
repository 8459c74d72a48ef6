// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The configuration of PID 1, which it needs before there is a link: a file in the initial root with one postcard
//! message.
//!
//! Kernel command lines are too short for this, and every program in the guest can read them.

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameFault};

/// The path of the message in the initial root.
pub const BOOT_CONFIG_PATH: &str = "/waggle/boot";

/// Largest [`BootConfig::ca_bundle`], in bytes: four times the size of the well-known authorities' certificates.
pub const CA_BUNDLE_BYTES_MAX: usize = 1024 * 1024;

/// Largest [`BootConfig`], in bytes: certificates, an image's environment, and a few paths.
pub const BOOT_CONFIG_BYTES_MAX: usize = CA_BUNDLE_BYTES_MAX + 256 * 1024;

/// The settings by which PID 1 sets up the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct BootConfig {
    /// Kernel modules in the order of loading: paths in the initial root.
    pub modules: Vec<String>,
    /// The image's own agent, if it is compatible: a path inside the image.
    pub image_agent: Option<String>,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// The image's default working directory for commands: an absolute path, which need not exist.
    pub working_directory: Option<String>,
    pub hostname: String,
    /// Defences that the operator has switched off.
    pub relaxed: Relaxed,
    /// The guest's network, if it has one: then it dials the egress link.
    pub network: Option<Network>,
    /// Certificates in PEM that programs in the guest trust in addition to those of the image; may be empty.
    pub ca_bundle: String,
}

/// The guest's network as seen from inside; its addresses are in [`crate::egress`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Network {
    /// True if the host has IPv6, so that programs may try it.
    pub ipv6: bool,
}

/// Defences around user programs that are switched off. By default all are on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relaxed {
    /// Separate namespaces.
    pub namespaces: bool,
    /// The capability bounding set.
    pub capabilities: bool,
    /// `no_new_privs`, and with it the system call filter, which depends on it.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub filter: bool,
}

impl BootConfig {
    /// Returns the content of the file at [`BOOT_CONFIG_PATH`].
    ///
    /// # Errors
    /// The error of postcard.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }

    /// Parses the content of the file.
    ///
    /// # Errors
    /// [`FrameFault`] if the bytes are not exactly one `BootConfig`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameFault> {
        frame::decode(bytes)
    }
}
