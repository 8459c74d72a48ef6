// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest's network. The guest has no network card: every connection ends in this machine, and the egress link
//! carries its data to and from the host.
//!
//! ```text
//!   program ── connect 192.0.2.7:443 ──▶ route: every address is local
//!                                          │ sk_lookup program: selects the socket
//!                                          │ listener's filter: drops the SYN, until the host has connected
//!                                          ▼
//!                         network process: listener, DNS server ── one stream per flow ──▶ host
//! ```
//!
//! A program's handshake waits for the host's answer ([`handshake`]).
//!
//! PID 1 sets up the routes, the sockets and the lookup program, and keeps the sockets open. The network process
//! carries the flows. It runs outside the sandbox and separate from the agent that serves calls. If the network process
//! exits, calls continue and PID 1 restarts the process. New connections wait until then, because they have no other
//! route. The network process has no policy: the host decides which connections are allowed.
//!
//! Only TCP and DNS are carried. Other UDP fails at once because no socket receives it, and programs in the sandbox
//! can't open ICMP sockets.

mod dns_server;
mod flow;
mod handshake;
mod limits;
mod link;
mod lookup_program;
mod route;
mod serve;
mod sockets;

use std::{io, os::fd::OwnedFd, process::ExitStatus, thread::sleep, time::Duration};

use caps::CapSet;
use nix::{
    sys::prctl::set_no_new_privs,
    unistd::{ForkResult, Pid},
};
use waggle_protocol::{
    EGRESS_PORT,
    boot::Network,
    egress::{GUEST_ADDRESS, GUEST_ADDRESS_V6},
};

use self::sockets::Sockets;
use crate::{
    cgroups,
    console::report,
    dial::Route,
    step::{StepFault, WithStep},
    sys,
};

/// Delay before each restart of the network process, so that a process that fails at once does not load the machine.
const RESTART: Duration = Duration::from_secs(1);

/// Maximum number of starts of the network process; more would only repeat a permanent fault.
const STARTS_MAX: u32 = 100;

/// The network that PID 1 has set up.
#[derive(Debug)]
pub(crate) struct GuestNetwork {
    sockets: Sockets,
    /// The virtio-serial port of the egress link, if it does not use vsock.
    port: Option<OwnedFd>,
    starts: u32,
    process: Option<Pid>,
}

impl GuestNetwork {
    /// Makes every address local, and directs connections to the sockets. Needs root and a loopback device that is up.
    pub(crate) fn open(network: Network, port: Option<OwnedFd>) -> Result<Self, StepFault> {
        let v6 = network.ipv6.then_some(GUEST_ADDRESS_V6.into());
        for own in [Some(GUEST_ADDRESS.into()), v6].into_iter().flatten() {
            route::add_address(own).step(|| format!("give the machine the address {own}"))?;
            route::add_default(own).step(|| format!("make all addresses local, with the source address {own}"))?;
        }
        let sockets = Sockets::open(network.ipv6).step(|| "redirect connections".to_owned())?;
        Ok(Self { sockets, port, starts: 0, process: None })
    }

    /// Starts the network process, which does not keep the port of the call link. The calling process must not have a
    /// second thread.
    pub(crate) fn start(&mut self, calls: &mut Option<OwnedFd>) {
        self.starts += 1;
        let is_restart = self.starts > 1;
        self.process = match sys::fork_single_threaded() {
            Ok(ForkResult::Parent { child }) => Some(child),
            Ok(ForkResult::Child) => {
                drop(calls.take());
                if is_restart {
                    sleep(RESTART);
                }
                if let Err(source) = self.carry() {
                    report(&format!("the network process failed: {source}"));
                }
                // The child must not return into PID 1's code.
                std::process::exit(1)
            }
            Err(errno) => {
                report(&format!("failed to start the network process: {errno}"));
                None
            }
        };
    }

    /// Restarts the network process if `pid` is that process. PID 1 calls this for every exited child.
    pub(crate) fn on_exit(&mut self, pid: Pid, status: ExitStatus, calls: &mut Option<OwnedFd>) {
        if self.process == Some(pid) {
            report(&format!("the network process has exited ({status}) after start {} of {STARTS_MAX}", self.starts));
            self.process = None;
            if self.starts < STARTS_MAX {
                self.start(calls);
            }
        }
    }

    fn carry(&mut self) -> io::Result<()> {
        cgroups::join_network()?;
        let sockets = self.sockets.try_clone()?;
        drop_privileges()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let route = self.port.take().map_or(Route::Vsock(EGRESS_PORT), Route::Port);
        runtime.block_on(serve::carry_all(sockets, |link| link::keep_up(route, link)))
    }
}

/// Drops all capabilities, because the network process reads data that programs and the host send.
fn drop_privileges() -> io::Result<()> {
    set_no_new_privs()?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(())
}
