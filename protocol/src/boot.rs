// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the host tells PID 1 before there is any link: one file in the initial root, one postcard message in it.
//!
//! Kernel command lines are too short for this, and readable by everyone in the guest.

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameFault};

/// Where the message lies in the initial root.
pub const BOOT_CONFIG_PATH: &str = "/waggle/boot";

/// Largest [`BootConfig::ca_bundle`], in bytes: four times what the well-known authorities' certificates come to.
pub const CA_BUNDLE_BYTES_MAX: usize = 1024 * 1024;

/// Largest [`BootConfig`], in bytes: certificates, an image's environment and a few paths.
pub const BOOT_CONFIG_BYTES_MAX: usize = CA_BUNDLE_BYTES_MAX + 256 * 1024;

/// How PID 1 makes the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct BootConfig {
    /// Kernel modules in the order of loading: paths in the initial root.
    pub modules: Vec<String>,
    /// The image's own agent, if it fits: a path inside the image.
    pub image_agent: Option<String>,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// Where the image wants commands to start that name no place: an absolute path, which need not exist.
    pub working_directory: Option<String>,
    /// The machine's host name.
    pub hostname: String,
    /// Defences that the operator has switched off.
    pub relaxed: Relaxed,
    /// Whether the guest has a network, and which: then it dials the egress link.
    pub network: Option<Network>,
    /// Certificates in PEM that programs in the guest are to trust besides those of the image; may be empty.
    pub ca_bundle: String,
}

/// What the guest's network looks like from inside; its addresses are in [`crate::egress`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Network {
    /// Whether the host has IPv6, so that it makes sense to a program to try it.
    pub ipv6: bool,
}

/// Defences around user work that are off. By default none is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relaxed {
    /// Namespaces of its own.
    pub namespaces: bool,
    /// The capability bounding set.
    pub capabilities: bool,
    /// `no_new_privs`, and with it the system call filter, which depends on it.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub filter: bool,
}

impl BootConfig {
    /// The bytes of the file at [`BOOT_CONFIG_PATH`].
    ///
    /// # Errors
    /// What postcard refused.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What was found in place of a `BootConfig`, or behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameFault> {
        frame::decode(bytes)
    }
}
