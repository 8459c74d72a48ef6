// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Messages between the agent and the sandbox's init process: one postcard message per packet. Both processes run the
//! same program, so the format has no versions.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use waggle_protocol::{FRAME_BYTES_MAX, frame, request::User};

/// Maximum size of a packet in bytes: the largest request of the host, plus 16 KiB for data that the agent adds.
pub(super) const PACKET_BYTES_MAX: usize = FRAME_BYTES_MAX + 16 * 1024;

/// Number of descriptors sent with a [`Spawn`]: stdin, stdout, stderr, and the folder of the command's cgroup.
pub(super) const SPAWN_FDS: usize = 4;

/// Buffer size for a packet of [`Ready`], in bytes.
pub(super) const READY_BYTES_MAX: usize = 16;

/// Reports that the sandbox is set up. The packet also contains a descriptor of the sandbox's mount namespace, and if
/// the filter has a listener, the listener.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Ready;

/// The agent's request to the sandbox. The agent sends references: `SandboxRequest<&Identity, &Spawn>`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) enum SandboxRequest<I, S> {
    /// Gives the sandbox the machine's identity; the first request, and again after the machine was copied.
    Identify(I),
    /// Starts a command.
    Spawn(S),
}

/// Asks the sandbox to start a command.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Spawn {
    /// Identifies the command in all messages.
    pub(crate) number: u64,
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Candidate folders; the command starts in the first one that it may enter.
    pub(crate) working_directories: Vec<String>,
    pub(crate) user: User,
    /// Maximum number of open files for each process of the command.
    pub(crate) open_files_max: u64,
}

/// The sandbox's report about its identity or about a command. The sandbox sends exactly one report per command.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) enum SandboxReport {
    /// The sandbox has the identity that it was sent.
    Identified,
    /// The command could not be started; `errno` is the kernel's error number.
    Failed { number: u64, step: SpawnStep, errno: i32 },
    /// The command has exited; `status` is its raw wait status.
    Exited { number: u64, status: i32 },
}

/// Steps from fork to exec.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
pub(super) enum SpawnStep {
    /// Forking into the call's cgroup, and all operations that no other step covers.
    Fork,
    /// Dropping privileges.
    Confine,
    /// Entering the working directory.
    WorkingDirectory,
    /// Executing the program.
    Exec,
}

impl SpawnStep {
    /// Converts the byte that a failed child writes to its error pipe.
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Confine,
            2 => Self::WorkingDirectory,
            3 => Self::Exec,
            _ => Self::Fork,
        }
    }
}

/// Sends one packet with a message and descriptors.
pub(super) fn send<T: Serialize>(socket: RawFd, message: &T, fds: &[RawFd]) -> io::Result<()> {
    // A receiver treats an empty packet as the end of the connection, so an extra zero byte precedes each message.
    let bytes = postcard::to_extend(message, vec![0]).map_err(io::Error::other)?;
    if bytes.len() > PACKET_BYTES_MAX {
        return Err(nix::errno::Errno::E2BIG.into());
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(socket, &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message and its descriptors; `None` if the other end is closed.
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
