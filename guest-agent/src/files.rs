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
mod program;
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
    io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf},
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use waggle_link::FrameWriter;
use waggle_protocol::{Fault, FaultKind, Reply, Request, frame::PREFIX_BYTES, request::User};

pub(crate) use self::program::Program;
use self::{path::View, wire::Wire};
use crate::{
    calls::{Reader, Writer},
    confine::{Defences, confine},
    fault::fault_of,
    guest::Served,
};

/// The agent's subcommand that makes it a worker.
pub const WORKER: &str = "files";

/// Moved at a time between a worker and the host, in bytes: a message of either comes whole, and wakes the link once.
const RELAY_BYTES: usize = 64 * 1024;

/// Longest a file call may take. The host has given up by then, unless it is gone without a word.
const CALL_MAX: Duration = Duration::from_secs(150);

/// How long a worker may go on without its host: enough to take back a file that was half written.
const ALONE_MAX: Duration = Duration::from_secs(5);

/// From a worker's last word, or its kill, to its end. It takes a millisecond, unless the kernel holds on to it.
const END_MAX: Duration = Duration::from_secs(2);

/// Has a worker serve the call whose first message is `request`. Returns a fault to answer with if the worker could not
/// be started or was lost, and `None` once the stream has ended.
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
    let mut replied = Boundary::default();
    let answered = async {
        let mut buffer = vec![0; RELAY_BYTES];
        // A broken stream has nobody left to tell.
        while let Ok(read @ 1..) = replies.read(&mut buffer).await {
            let bytes = buffer.get(..read).unwrap_or_default();
            replied.pass(bytes);
            if writer.stream_mut().write_all(bytes).await.is_err() {
                return false;
            }
        }
        true
    };
    let fed = async {
        // The worker may answer before it has read everything; the host closes its side only when it leaves, and the
        // worker then sees an end where input was due. One that is at something else gets the time to finish it.
        drop(copy_buf(&mut BufReader::with_capacity(RELAY_BYTES, reader.stream_mut()), &mut inputs).await);
        drop(inputs.shutdown().await);
        sleep(ALONE_MAX).await;
    };
    let (host_listens, in_time) = tokio::select! {
        host_listens = answered => (host_listens, true),
        () = fed => (false, true),
        () = sleep(CALL_MAX) => (true, false),
    };
    // The worker waits for this before it ends.
    drop(near);
    let died = worker.end(in_time).await;
    if !host_listens {
        return None;
    }
    // In the middle of a reply a fault would be taken for the rest of it; the end of the stream says enough.
    let fault = died.filter(|_| replied.between_messages());
    if fault.is_none() {
        drop(writer.stream_mut().shutdown().await);
    }
    fault
}

/// Tells where the messages end in bytes that pass by.
#[derive(Default)]
struct Boundary {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    body_left: usize,
}

impl Boundary {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (body, rest) = bytes.split_at(self.body_left.min(bytes.len()));
            self.body_left -= body.len();
            let (part, rest) = rest.split_at((PREFIX_BYTES - self.prefix_bytes).min(rest.len()));
            bytes = rest;
            if let Some(place) = self.prefix.get_mut(self.prefix_bytes..self.prefix_bytes + part.len()) {
                place.copy_from_slice(part);
            }
            self.prefix_bytes += part.len();
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.body_left = usize::try_from(u32::from_le_bytes(self.prefix)).unwrap_or(usize::MAX);
            }
        }
    }

    fn between_messages(&self) -> bool {
        self.prefix_bytes == 0 && self.body_left == 0
    }
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
                let mut command = Command::new(served.worker_program.path());
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

    /// Ends the worker; says so if it was killed, or has to be, before its work was done. One that the kernel does not
    /// let go of is left behind: the call ends without it.
    async fn end(self, in_time: bool) -> Option<Fault> {
        match self {
            Self::Process(mut child) => {
                let ended = if in_time { timeout(END_MAX, child.wait()).await.ok() } else { None };
                if ended.is_none() {
                    // It may have ended by itself meanwhile.
                    drop(child.start_kill());
                    drop(timeout(END_MAX, child.wait()).await);
                }
                let how = match ended {
                    Some(Ok(status)) if status.success() => return None,
                    Some(Ok(status)) => status.to_string(),
                    Some(Err(fault)) => fault.to_string(),
                    None => "it took too long".to_owned(),
                };
                let message = format!("the file worker was lost before it had answered: {how}");
                Some(Fault { kind: FaultKind::Other, message })
            }
            // A thread can't be killed; it ends at its next read or write of the socket.
            Self::Thread(thread) => {
                drop(thread);
                None
            }
        }
    }
}

/// Open files of a worker: one for each folder that a listing goes down, and room for everything else.
const WORKER_FILES: u64 = list::DEPTH_MAX as u64 + 32;

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

/// The worker's whole life: serves the one call that comes over `socket`, in the file system at `root`. `descriptors`
/// was opened by this process, or would name another's.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_messages_are_found_however_they_are_cut() {
        let bytes = [&[3, 0, 0, 0, 9, 9, 9][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 9]].concat();
        for piece in 1..bytes.len() {
            let (mut boundary, mut passed, mut ends) = (Boundary::default(), 0, Vec::new());
            for piece in bytes.chunks(piece) {
                boundary.pass(piece);
                passed += piece.len();
                if boundary.between_messages() {
                    ends.push(passed);
                }
            }
            assert!(ends.iter().all(|end| [7, 11, 16].contains(end)), "{ends:?}");
            assert_eq!(ends.last(), Some(&16));
        }
    }
}
