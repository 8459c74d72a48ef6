// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! File calls, each done by a worker process that has the sandbox user's identity from its first instruction on.
//!
//! ```text
//!   host ── call stream ── agent ── socket pair ── worker (waggle-agent files ROOT, as sandbox)
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
    os::{fd::OwnedFd, unix::net::UnixStream as Socket},
    path::Path,
    process::Stdio,
};

use tokio::{
    io::{AsyncWriteExt, copy},
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
};
use waggle_link::FrameWriter;
use waggle_protocol::{Fault, FaultKind, Reply, Request};

use self::wire::Wire;
use crate::{
    calls::{Reader, Writer},
    fault::fault_of,
    guest::{Guest, Identity, SANDBOX_ID},
};

/// The agent's subcommand that makes it a worker.
pub const WORKER: &str = "files";

/// Has a worker serve the call whose first message is `request`. Returns a fault to answer with if the worker could not
/// be started, and `None` once the stream has ended.
pub(crate) async fn relay(guest: &Guest, request: &Request, reader: &mut Reader, writer: &mut Writer) -> Option<Fault> {
    let (mut near, worker) = match Worker::start(guest) {
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
        let copied = copy(&mut replies, writer.stream_mut()).await;
        let ended = writer.stream_mut().shutdown().await;
        copied.and(ended)
    };
    let fed = async {
        // The worker may answer before it has read everything; the host closes its side only when it leaves, and the
        // worker then sees an end where input was due. Only the worker's answer ends the call.
        drop(copy(reader.stream_mut(), &mut inputs).await);
        drop(inputs.shutdown().await);
        std::future::pending::<()>().await;
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
    fn start(guest: &Guest) -> io::Result<(UnixStream, Self)> {
        let (near, far) = Socket::pair()?;
        near.set_nonblocking(true)?;
        let near = UnixStream::from_std(near)?;
        let worker = match guest.identity {
            Identity::Sandbox => {
                let mut command = Command::new("/proc/self/exe");
                command.arg(WORKER).arg(&guest.root).env_clear().current_dir("/").kill_on_drop(true);
                command.uid(SANDBOX_ID).gid(SANDBOX_ID).process_group(0);
                command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::null());
                Self::Process(command.spawn()?)
            }
            Identity::Caller => {
                let root = guest.root.clone();
                Self::Thread(tokio::task::spawn_blocking(move || serve(far, &root)))
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

/// The worker's whole life: serves the one call that comes over `socket`, in the file system at `root`.
pub fn serve(socket: Socket, root: &Path) {
    let mut wire = Wire::new(socket);
    let last = match wire.request() {
        Ok(request) => answer(&mut wire, root, request),
        Err(fault) => Err(fault),
    };
    let last = last.unwrap_or_else(Reply::Fault);
    // A host that is gone has no use for the reply.
    drop(wire.reply(&last));
    wire.close();
}

fn answer(wire: &mut Wire, root: &Path, request: Request) -> Result<Reply<'static>, Fault> {
    match request {
        Request::WriteFile { path, bytes, mode } => write::file(wire, root, &path, bytes, mode),
        Request::ReadFile { path, bytes_max } => read::file(wire, root, &path, bytes_max),
        Request::ListFiles { path, entries_max } => list::folder(wire, root, &path, entries_max),
        Request::Exec(_) | Request::SetClock { .. } | Request::PowerOff => {
            Err(Fault { kind: FaultKind::BadRequest, message: "a file worker serves file calls only".to_owned() })
        }
    }
}
