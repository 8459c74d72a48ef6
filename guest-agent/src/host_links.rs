// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! PID 1's ends of the links to the host. Each child of PID 1 keeps only the one that it serves.

use std::{os::fd::OwnedFd, process::ExitStatus};

use nix::unistd::Pid;

use crate::network::GuestNetwork;

#[derive(Debug)]
pub(crate) struct HostLinks {
    /// The virtio-serial port of the call link, if it does not use vsock.
    pub(crate) calls: Option<OwnedFd>,
    pub(crate) network: Option<GuestNetwork>,
}

impl HostLinks {
    /// Starts the network process if the machine has a network.
    pub(crate) fn start_network(&mut self) {
        if let Some(network) = &mut self.network {
            network.start(&mut self.calls);
        }
    }

    /// Restarts the network process if `pid` is that process.
    pub(crate) fn on_exit(&mut self, pid: Pid, status: ExitStatus) {
        if let Some(network) = &mut self.network {
            network.on_exit(pid, status, &mut self.calls);
        }
    }
}
