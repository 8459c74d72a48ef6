// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the agent and its room say to each other: one postcard message a packet. Both ends are the same program.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use waggle_protocol::{FRAME_BYTES_MAX, frame, request::User};

/// Largest packet, in bytes: a request of the host's with its arguments and environment, and some room.
pub(super) const PACKET_BYTES_MAX: usize = FRAME_BYTES_MAX + 16 * 1024;

/// Descriptors that come with a [`Spawn`]: stdin, stdout, stderr, and the folder of its cgroup.
pub(super) const SPAWN_FDS: usize = 4;

/// Largest packet of [`Ready`], in bytes.
pub(super) const READY_BYTES_MAX: usize = 16;

/// From the room, once: it is made. Its mount namespace comes along.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Ready;

/// To the room: start a command.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Spawn {
    /// Chosen by the agent, in every message about this command.
    pub(crate) number: u64,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where it starts: the first of these that lets it in.
    pub(crate) working_directories: Vec<String>,
    /// Who runs it.
    pub(crate) user: User,
    /// Most open files of one of its processes.
    pub(crate) open_files_max: u64,
}

/// From the room: the one word about a command.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) enum Told {
    /// The command could not be started; this step failed with this error number of the kernel's.
    Failed { number: u64, step: Step, errno: i32 },
    /// The command has ended, with a wait status.
    Ended { number: u64, status: i32 },
}

/// Steps between fork and exec.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
pub(super) enum Step {
    /// Forking into the call's cgroup, and whatever has no step of its own.
    Fork,
    /// Dropping privileges.
    Confine,
    /// Entering the working directory.
    WorkingDirectory,
    /// Executing the program.
    Exec,
}

impl Step {
    /// From the byte that a child writes.
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Confine,
            2 => Self::WorkingDirectory,
            3 => Self::Exec,
            _ => Self::Fork,
        }
    }
}

/// Sends one packet with descriptors.
pub(super) fn send<T: Serialize>(socket: RawFd, message: &T, fds: &[RawFd]) -> io::Result<()> {
    // A packet without bytes would look like the end; a byte in front of all of them keeps it apart.
    let bytes = postcard::to_extend(message, vec![0]).map_err(io::Error::other)?;
    if bytes.len() > PACKET_BYTES_MAX {
        return Err(nix::errno::Errno::E2BIG.into());
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(socket, &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one packet and its descriptors; `None` once the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(socket: RawFd, buffer: &mut [u8]) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([RawFd; SPAWN_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = message {
            fds.extend(rights.into_iter().map(crate::sys::own));
        }
    }
    let bytes = received.bytes;
    match buffer.get(..bytes).and_then(<[u8]>::split_first) {
        None => Ok(None),
        Some((_, packet)) => Ok(Some((frame::decode(packet).map_err(io::Error::other)?, fds))),
    }
}
