// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sandbox for all user processes: separate namespaces with an init process that starts and reaps every command.
//!
//! ```text
//!   serving agent ──seqpacket──▶ init (PID 1 of the sandbox's namespaces, root, single-threaded)
//!                                  ├─ fork, confine, exec ─▶ command
//!                                  └─ reaps commands and orphans, reports how each command ended
//! ```
//!
//! Processes in the sandbox can neither see nor signal the agent. The sandbox is forked before the agent starts a
//! thread, so the code between fork and exec needs no restriction to async-signal-safe functions.

mod client;
mod init;
mod launch;
mod message;
mod namespaces;
mod refusals;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::waitpid,
    },
    unistd::ForkResult,
};

pub(crate) use client::{Sandbox, StartedCommand};
pub(crate) use message::Spawn;

use crate::{
    cgroups,
    confine::Defences,
    console::{report, with_cause},
    sandbox_user::SandboxUser,
    sys,
};

/// The agent's connection to a forked sandbox, before the agent has a runtime to use the connection.
#[derive(Debug)]
pub struct SandboxSpawner {
    socket: OwnedFd,
    /// The sandbox's mount namespace, for file workers.
    mounts: OwnedFd,
    user: SandboxUser,
    /// Receives system calls to refuse; `None` if the filter refuses all of them by itself.
    refused_calls: Option<OwnedFd>,
}

impl SandboxSpawner {
    /// Forks the sandbox. The calling process must not have started a thread. The user of the commands is the one that
    /// the machine's user file has now. The sandbox does not keep the port of the call link.
    ///
    /// # Errors
    /// The kernel's error. An error inside the sandbox is reported only on the console.
    pub fn fork(defences: Defences, calls: &mut Option<OwnedFd>) -> io::Result<Self> {
        let user = SandboxUser::read();
        let (socket, inside) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        match sys::fork_single_threaded()? {
            ForkResult::Parent { child } => {
                drop(inside);
                let ready = message::receive::<message::Ready>(socket.as_raw_fd(), &mut [0; message::READY_BYTES_MAX]);
                // Reaps the intermediate process. The sandbox's init process is now PID 1's child.
                waitpid(child, None)?;
                let fds = ready?.map(|(message::Ready, fds)| fds);
                cgroups::delegate_to_calls()?;
                let mut fds = fds.into_iter().flatten();
                let mounts = fds.next().ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(Self { socket, mounts, refused_calls: fds.next(), user })
            }
            ForkResult::Child => {
                drop((socket, calls.take()));
                let status = match namespaces::enter_and_fork(defences) {
                    Ok(ForkResult::Parent { .. }) => 0,
                    Ok(ForkResult::Child) => init::run(&inside, &user.groups, defences),
                    Err(fault) => {
                        report(&with_cause(&fault));
                        1
                    }
                };
                // A forked child must not return into its parent's code.
                std::process::exit(status)
            }
        }
    }
}
