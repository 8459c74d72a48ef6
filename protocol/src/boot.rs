// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The configuration that PID 1 needs before there is a link: one postcard message in a file of the initial root.
//!
//! A kernel command line is too short for the configuration, and every program in the guest can read it.

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameFault};

/// The path of the configuration file in the initial root.
pub const BOOT_CONFIG_PATH: &str = "/waggle/boot";

/// Maximum size of [`BootConfig::ca_bundle`] in bytes: four times the size of the usual bundle of public authorities.
pub const CA_BUNDLE_BYTES_MAX: usize = 1024 * 1024;

/// Maximum size of an encoded [`BootConfig`] in bytes: the certificates, and 256 KiB for all other fields.
pub const BOOT_CONFIG_BYTES_MAX: usize = CA_BUNDLE_BYTES_MAX + 256 * 1024;

/// The settings that PID 1 uses to set up the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct BootConfig {
    /// The path of the image's own agent inside the image, if that agent is compatible.
    pub image_agent: Option<String>,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// The image's default working directory for commands: an absolute path, which need not exist.
    pub working_directory: Option<String>,
    /// The device that carries the links to the host.
    pub transport: Transport,
    /// Defences that the operator has switched off.
    pub relaxed: Relaxed,
    /// The guest's network, or `None` for a guest without a network. Only a guest with a network dials the egress link.
    pub network: Option<Network>,
    /// Certificates in PEM that programs in the guest trust in addition to the image's certificates; may be empty.
    pub ca_bundle: String,
}

/// A device that carries the links between guest and host.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Transport {
    /// virtio-vsock: the guest connects to a port of the host, once for each generation of a link.
    #[default]
    Vsock,
    /// virtio-serial: one port for each link, found by its name.
    Serial,
}

/// The name of the virtio-serial port that carries the call link.
pub const CALL_PORT_NAME: &str = "waggle.calls";

/// The name of the virtio-serial port that carries the egress link. A machine without a network does not have it.
pub const EGRESS_PORT_NAME: &str = "waggle.egress";

/// The settings of the guest's network. The addresses are constants in [`crate::egress`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Network {
    /// True if the host has IPv6, so that programs in the guest may use IPv6.
    pub ipv6: bool,
}

/// The defences around user programs that are switched off. A flag is true if its defence is off; by default all
/// defences are on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relaxed {
    /// Separate namespaces.
    pub namespaces: bool,
    /// The capability bounding set.
    pub capabilities: bool,
    /// `no_new_privs`. This also switches off the system call filter, which requires `no_new_privs`.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub filter: bool,
}

impl BootConfig {
    /// Returns the content of the file at [`BOOT_CONFIG_PATH`].
    ///
    /// # Errors
    /// postcard failed to encode the configuration.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }

    /// Parses the content of the file at [`BOOT_CONFIG_PATH`].
    ///
    /// # Errors
    /// [`FrameFault`] if the bytes are not exactly one `BootConfig`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameFault> {
        frame::decode(bytes)
    }
}
