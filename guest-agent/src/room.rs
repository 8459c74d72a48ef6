// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The room that user work lives in: namespaces of its own, whose first process starts every command and reaps it.
//!
//! ```text
//!   serving agent ──seqpacket──▶ room (PID 1 of its namespaces, root, single-threaded)
//!                                  ├─ fork, confine, exec ─▶ command
//!                                  └─ reaps commands and orphans, tells how each command ended
//! ```
//!
//! What runs in the room can neither see nor signal the agent. The room is forked before the agent starts a thread, so
//! that each command is made by plain code between fork and exec.

mod client;
mod first;
mod launch;
mod message;
mod namespaces;

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

pub(crate) use client::{Room, Started};
pub(crate) use message::Spawn;

use crate::{
    cgroups,
    confine::Defences,
    console::{report, with_cause},
    sys,
};

/// The agent's end of a room that has been made, before there is a runtime to use it from.
#[derive(Debug)]
pub struct Door {
    socket: OwnedFd,
    /// The room's mount namespace, for file workers.
    mounts: OwnedFd,
}

impl Door {
    /// Makes the room. Only for a process that has not started a thread.
    ///
    /// # Errors
    /// What the kernel said; the room itself has said more on the console.
    pub fn open(defences: Defences) -> io::Result<Self> {
        let (socket, inside) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        match sys::fork_single_threaded()? {
            ForkResult::Parent { child } => {
                drop(inside);
                let ready = message::receive::<message::Ready>(socket.as_raw_fd(), &mut [0; message::READY_BYTES_MAX]);
                // The process in the middle; the room itself is now PID 1's child.
                waitpid(child, None)?;
                let fds = ready?.map(|(message::Ready, fds)| fds);
                cgroups::open_room()?;
                let mounts = fds.and_then(|fds| fds.into_iter().next()).ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(Self { socket, mounts })
            }
            ForkResult::Child => {
                drop(socket);
                let status = match namespaces::enter_and_fork(defences) {
                    Ok(ForkResult::Parent { .. }) => 0,
                    Ok(ForkResult::Child) => first::live(&inside, defences),
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
