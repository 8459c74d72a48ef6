// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest's network, which has no card: every connection ends in this machine, and is carried over the egress link.
//!
//! ```text
//!   program ── connect 192.0.2.7:443 ──▶ route: every address is local
//!                                          │ sk_lookup program: which socket is it for?
//!                                          ▼
//!                          egress process: listener, name service ── one stream a flow ──▶ host
//! ```
//!
//! PID 1 makes routes, sockets and program, and keeps a hold on them; a process of its own carries the flows, outside
//! the room and apart from the agent that serves calls. Whatever that process comes to, calls go on, it is started
//! again, and no connection meanwhile takes another way. It never decides what is allowed: the host does.
//!
//! Not carried: UDP other than DNS, whose senders hear at once that nobody listens, and ICMP, for which programs in the
//! room may open no socket.

mod flow;
mod link;
mod names;
mod program;
mod route;
mod serve;
mod sockets;

use std::{io, process::ExitStatus, thread::sleep, time::Duration};

use caps::CapSet;
use nix::{
    sys::prctl::set_no_new_privs,
    unistd::{ForkResult, Pid},
};
use waggle_protocol::{
    boot::Network,
    egress::{GUEST_ADDRESS, GUEST_ADDRESS_V6},
};

use self::sockets::Sockets;
use crate::{
    boot::{BootFault, Step},
    cgroups,
    console::report,
    sys,
};

/// Before the process is started once more, so that one that ends at once costs the machine little.
const RESTART: Duration = Duration::from_secs(1);

/// Starts of the process before it is given up: something is wrong with this machine.
const STARTS_MAX: u32 = 100;

/// The network that PID 1 has made.
#[derive(Debug)]
pub(crate) struct Egress {
    sockets: Sockets,
    starts: u32,
    process: Option<Pid>,
}

impl Egress {
    /// Makes every address local, and steers what goes to them. Needs root, and the loopback device to be up.
    pub(crate) fn open(network: Network) -> Result<Self, BootFault> {
        let v6 = network.ipv6.then_some(GUEST_ADDRESS_V6.into());
        for own in [Some(GUEST_ADDRESS.into()), v6].into_iter().flatten() {
            route::add_address(own).step(|| format!("give the machine the address {own}"))?;
            route::add_default(own).step(|| format!("make all addresses local, with connections from {own}"))?;
        }
        let sockets = Sockets::open(network.ipv6).step(|| "steer connections".to_owned())?;
        Ok(Self { sockets, starts: 0, process: None })
    }

    /// Starts the process that carries the flows. Only for a process that has no second thread.
    pub(crate) fn start(&mut self) {
        self.starts += 1;
        let again = self.starts > 1;
        self.process = match sys::fork_single_threaded() {
            Ok(ForkResult::Parent { child }) => Some(child),
            Ok(ForkResult::Child) => {
                if again {
                    sleep(RESTART);
                }
                if let Err(source) = self.carry() {
                    report(&format!("failed to carry the network: {source}"));
                }
                // The child must not return into PID 1's code.
                std::process::exit(1)
            }
            Err(errno) => {
                report(&format!("failed to start the network's process: {errno}"));
                None
            }
        };
    }

    /// Hears that a child of PID 1 is gone. If it was the network's, another takes its place.
    pub(crate) fn heed(&mut self, gone: Pid, status: ExitStatus) {
        if self.process == Some(gone) {
            report(&format!("the network's process is gone ({status}), start {} of {STARTS_MAX}", self.starts));
            self.process = None;
            if self.starts < STARTS_MAX {
                self.start();
            }
        }
    }

    fn carry(&self) -> io::Result<()> {
        cgroups::join_egress()?;
        let sockets = self.sockets.try_clone()?;
        give_up_rights()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve::carry_all(sockets, link::keep_up))
    }
}

/// Whoever takes this process over by what a program or the host sends has no rights of root's.
fn give_up_rights() -> io::Result<()> {
    set_no_new_privs()?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(())
}
