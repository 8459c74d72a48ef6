// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The worker's side of a file call: becomes the sandbox user, and serves the call.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as Socket,
    },
    path::Path,
};

use nix::sched::{CloneFlags, setns};
use waggle_protocol::{Fault, FaultKind, Reply, Request, request::User};

use super::{list, path, path::FileRoot, read, wire::Wire, write};
use crate::{
    confine::{Defences, confine},
    fault::{fault, fault_of},
    sandbox_user::Groups,
};

/// The agent's subcommand that runs a worker.
pub const WORKER: &str = "files";

/// Maximum number of open files of a worker: one per level of a recursive listing, plus a reserve for other files.
const OPEN_FILES_MAX: u64 = list::DEPTH_MAX as u64 + 32;

/// Serves the call on stdin as the sandbox user with these groups, which the agent has encoded. Stdout must be a
/// descriptor of the sandbox's mount namespace, and this process enters that namespace. The process must start as root
/// in the machine's namespaces.
///
/// # Errors
/// The kernel's error if the process could not become the sandbox user; no file of the call was accessed.
pub fn serve_as_sandbox(root: &Path, groups: &str) -> io::Result<()> {
    let groups = Groups::from_argument(groups)?;
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let descriptors = path::descriptors()?;
    setns(io::stdout().as_fd(), CloneFlags::CLONE_NEWNS)?;
    confine(User::Sandbox, &groups, Defences::ALL, OPEN_FILES_MAX)?;
    serve(socket, root, descriptors);
    Ok(())
}

/// Serves the only call on `socket`, in the file system at `root`. This process must have opened `descriptors`, because
/// a `/proc/self/fd` folder shows the descriptors of the process that opened it.
pub(super) fn serve(socket: Socket, root: &Path, descriptors: OwnedFd) {
    let mut wire = Wire::new(socket);
    let last = FileRoot::open(root, descriptors)
        .map_err(|source| fault_of(&source, "failed to open the root of the file system"))
        .and_then(|root| wire.request().and_then(|request| answer(&mut wire, &root, request)));
    let last = last.unwrap_or_else(Reply::Fault);
    // The reply fails only if the host is gone.
    drop(wire.reply(&last));
    wire.close();
}

fn answer(wire: &mut Wire, root: &FileRoot, request: Request) -> Result<Reply<'static>, Fault> {
    match request {
        Request::WriteFile { path, bytes, mode, append } => {
            write::file(wire, root, &path, write::Options { bytes, mode, append })
        }
        Request::ReadFile { path, range, bytes_max } => {
            read::file(wire, root, &path, read::Options { range, bytes_max })
        }
        Request::ListFiles { path, after, entries_max, recursive } => {
            list::folder(wire, root, &path, list::Options { after, entries_max, recursive })
        }
        Request::Exec(_) | Request::SetClock { .. } | Request::Hold | Request::PowerOff => {
            Err(fault(FaultKind::BadRequest, "a file worker serves only file calls"))
        }
    }
}
