// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! File calls, each done by a worker process that becomes the sandbox user before it reads a byte of the call.
//!
//! ```text
//!   host ── call stream ── agent ── socket pair ── worker (waggle-agent files ROOT)
//! ```
//!
//! The worker speaks the protocol on its socket: the agent hands it the request and then moves bytes both ways without
//! looking at them. A thread that merely switched its user would still share the agent's memory. Where the agent runs
//! as its caller, the same code runs on a thread, as there is no other identity to take.

mod list;
mod path;
mod read;
mod wire;
mod write;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as Socket,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncWriteExt, BufReader, copy_buf},
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
    time::sleep,
};
use waggle_link::FrameWriter;
use waggle_protocol::{Fault, FaultKind, Reply, Request, request::User};

use self::{path::View, wire::Wire};
use crate::{
    calls::{Reader, Writer},
    confine::{Defences, confine},
    fault::fault_of,
    guest::Served,
};

/// Longest wait for a worker once there is no more to come from the host, which itself waits no longer for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// The agent's subcommand that makes it a worker.
pub const WORKER: &str = "files";

/// Moved at a time between a worker and the host, in bytes: a message of either comes whole, and wakes the link once.
const RELAY_BYTES: usize = 64 * 1024;

/// Has a worker serve the call whose first message is `request`. Returns a fault to answer with if the worker could not
/// be started, and `None` once the stream has ended.
pub(crate) async fn relay(
    served: &Served,
    request: &Request,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Option<Fault> {
    let (mut near, worker) = match Worker::start(served) {
        Ok(started) => started,
        Err(source) => return Some(fault_of(&source, "failed to start the file worker")),
    };
    let handed: Result<(), Fault> = match FrameWriter::new(&mut near).send(request).await {
        Ok(()) => Ok(()),
        Err(fault) => Err(Fault { kind: FaultKind::Other, message: fault.to_string() }),
    };
    if let Err(fault) = handed {
        return Some(fault);
    }
    let (mut replies, mut inputs) = near.split();
    let answered = async {
        let copied = copy_buf(&mut BufReader::with_capacity(RELAY_BYTES, &mut replies), writer.stream_mut()).await;
        let ended = writer.stream_mut().shutdown().await;
        copied.and(ended)
    };
    let fed = async {
        // The worker may answer before it has read everything; the host closes its side only when it leaves, and the
        // worker then sees an end where input was due.
        drop(copy_buf(&mut BufReader::with_capacity(RELAY_BYTES, reader.stream_mut()), &mut inputs).await);
        drop(inputs.shutdown().await);
        // The host has left, or waits for the answer: one that does not come soon is not waited for.
        sleep(ANSWER_MAX).await;
    };
    tokio::select! {
        // A broken stream has nobody left to tell.
        outcome = answered => drop(outcome),
        () = fed => {}
    }
    worker.end().await;
    None
}

/// Who serves a file call.
enum Worker {
    Process(Child),
    Thread(JoinHandle<()>),
}

impl Worker {
    fn start(served: &Served) -> io::Result<(UnixStream, Self)> {
        let (near, far) = Socket::pair()?;
        near.set_nonblocking(true)?;
        let near = UnixStream::from_std(near)?;
        let worker = match &served.room {
            Some(room) => {
                let mut command = Command::new("/proc/self/exe");
                command.arg(WORKER).arg(served.root()).env_clear().current_dir("/").kill_on_drop(true);
                command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::from(room.mounts()?));
                Self::Process(command.spawn()?)
            }
            None => {
                let (root, descriptors) = (served.root().to_owned(), path::descriptors()?);
                Self::Thread(tokio::task::spawn_blocking(move || serve(far, &root, descriptors)))
            }
        };
        Ok((near, worker))
    }

    /// Ends the worker; its socket is closed by now, or about to be.
    async fn end(self) {
        match self {
            // It may have ended by itself.
            Self::Process(mut child) => drop(child.kill().await),
            // A thread can't be killed; it ends at its next read or write of the socket.
            Self::Thread(thread) => drop(thread),
        }
    }
}

/// Open files of a worker: two for each folder that a listing goes down, and room for everything else.
const WORKER_FILES: u64 = 2 * list::DEPTH_MAX as u64 + 32;

/// The life of a worker process, from root in the machine's namespaces to the sandbox user in the room's mounts: serves
/// the call on its stdin. Its stdout is the room's mount namespace.
///
/// # Errors
/// What kept it from becoming the sandbox user; it has not touched a file then.
pub fn serve_as_sandbox(root: &Path) -> io::Result<()> {
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let descriptors = path::descriptors()?;
    setns(io::stdout().as_fd(), CloneFlags::CLONE_NEWNS)?;
    confine(User::Sandbox, Defences::ALL, WORKER_FILES)?;
    serve(socket, root, descriptors);
    Ok(())
}

/// The worker's whole life: serves the one call that comes over `socket`, in the file system at `root`. `descriptors` was
/// opened by this process, or would name another's.
fn serve(socket: Socket, root: &Path, descriptors: OwnedFd) {
    let mut wire = Wire::new(socket);
    let last = View::new(root, descriptors)
        .map_err(|source| fault_of(&source, "failed to open the root of the file system"))
        .and_then(|view| wire.request().and_then(|request| answer(&mut wire, &view, request)));
    let last = last.unwrap_or_else(Reply::Fault);
    // A host that is gone has no use for the reply.
    drop(wire.reply(&last));
    wire.close();
}

fn answer(wire: &mut Wire, view: &View, request: Request) -> Result<Reply<'static>, Fault> {
    match request {
        Request::WriteFile { path, bytes, mode, append } => {
            write::file(wire, view, &path, write::Writing { bytes, mode, append })
        }
        Request::ReadFile { path, range, bytes_max } => {
            read::file(wire, view, &path, read::Wanted { range, bytes_max })
        }
        Request::ListFiles { path, entries_max, recursive } => list::folder(wire, view, &path, entries_max, recursive),
        Request::Exec(_) | Request::SetClock { .. } | Request::PowerOff => {
            Err(Fault { kind: FaultKind::BadRequest, message: "a file worker serves file calls only".to_owned() })
        }
    }
}
