// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent's side of a file call: starts a worker, and relays the call's stream in both directions.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as Socket},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf},
    net::UnixStream,
    process::{Child, Command},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use waggle_link::FrameWriter;
use waggle_protocol::{Fault, FaultKind, Request, frame::PREFIX_BYTES};

use super::{
    path,
    worker::{self, WORKER},
    worker_program::WorkerProgram,
};
use crate::{
    console::report,
    fault::{fault, fault_of},
    platform::Platform,
    streams::{Reader, Writer},
};

/// Size of the relay's buffers: about the largest message, so that a message needs few writes to the link.
const RELAY_BYTES: usize = 64 * 1024;

/// Timeout of a file call. The host's own timeout is shorter, so this one only ends calls of a host that vanished.
const CALL_MAX: Duration = Duration::from_secs(150);

/// Time that a worker may continue after the host has closed the call: enough to remove a half-written file.
const ALONE_MAX: Duration = Duration::from_secs(5);

/// Timeout for a worker to exit after its last message, or after it was killed. The exit needs about a millisecond,
/// unless the worker hangs in the kernel.
const EXIT_MAX: Duration = Duration::from_secs(2);

/// First byte of the first variant of [`Reply`](waggle_protocol::Reply) that ends a call. All later variants end a call
/// as well.
const FIRST_LAST_REPLY: u8 = 4;

/// Starts a worker for each file call.
#[derive(Debug)]
pub(crate) struct Workers {
    root: PathBuf,
    program: WorkerProgram,
    platform: Arc<Platform>,
}

impl Workers {
    pub(crate) fn new(root: PathBuf, platform: Arc<Platform>) -> io::Result<Self> {
        Ok(Self { root, program: WorkerProgram::find()?, platform })
    }

    /// Serves the call of `request` through a worker. Returns a fault to send to the host if the worker could not be
    /// started, or was lost before its last reply. Returns `None` once the stream has ended.
    pub(crate) async fn relay(&self, request: &Request, reader: &mut Reader, writer: &mut Writer) -> Option<Fault> {
        let (mut near, worker) = match self.start() {
            Ok(started) => started,
            Err(source) => return Some(fault_of(&source, "failed to start the file worker")),
        };
        if let Err(source) = FrameWriter::new(&mut near).send(request).await {
            return Some(fault(FaultKind::Other, source.to_string()));
        }
        let (mut replies, mut inputs) = near.split();
        let mut replies_sent = SentReplies::default();
        let answered = async {
            let mut buffer = vec![0; RELAY_BYTES];
            // A broken socket is treated like a closed one.
            while let Ok(read @ 1..) = replies.read(&mut buffer).await {
                let bytes = buffer.get(..read).unwrap_or_default();
                replies_sent.pass(bytes);
                if writer.stream_mut().write_all(bytes).await.is_err() {
                    return false;
                }
            }
            true
        };
        let fed = async {
            // The worker may answer before it has read all input. If the host closes its side, the host no longer waits
            // for the call. The worker's next read of input then fails, and the worker has some time to finish.
            drop(copy_buf(&mut BufReader::with_capacity(RELAY_BYTES, reader.stream_mut()), &mut inputs).await);
            drop(inputs.shutdown().await);
            sleep(ALONE_MAX).await;
        };
        let (host_listens, in_time) = tokio::select! {
            host_listens = answered => (host_listens, true),
            () = fed => (false, true),
            () = sleep(CALL_MAX) => (true, false),
        };
        // The worker exits only after this side has closed its socket.
        drop(near);
        let lost = worker.end(in_time).await;
        if let (Some(reason), true) = (&lost, replies_sent.last_has_begun) {
            report(&format!("a file worker failed after its last reply: {reason}"));
        }
        if !host_listens {
            return None;
        }
        match lost.filter(|_| replies_sent.may_continue()) {
            Some(reason) => {
                Some(fault(FaultKind::Other, format!("lost the file worker before it had answered: {reason}")))
            }
            None => {
                drop(writer.stream_mut().shutdown().await);
                None
            }
        }
    }

    fn start(&self) -> io::Result<(UnixStream, Worker)> {
        let (near, far) = Socket::pair()?;
        near.set_nonblocking(true)?;
        let near = UnixStream::from_std(near)?;
        let worker = match &*self.platform {
            Platform::Machine(sandbox) => {
                let mut command = Command::new(self.program.path());
                command.arg(WORKER).arg(&self.root).arg(sandbox.user().groups.argument());
                command.env_clear().current_dir("/").kill_on_drop(true);
                command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::from(sandbox.mounts()?));
                Worker::Process(command.spawn()?)
            }
            Platform::Caller => {
                let (root, descriptors) = (self.root.clone(), path::descriptors()?);
                drop(spawn_blocking(move || worker::serve(far, &root, descriptors)));
                Worker::Thread
            }
        };
        Ok((near, worker))
    }
}

/// The position in the stream of replies that were sent to the host.
#[derive(Default)]
struct SentReplies {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    body_left: usize,
    /// Whether the next byte of the body is its first.
    is_body_new: bool,
    last_has_begun: bool,
}

impl SentReplies {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (body, rest) = bytes.split_at(self.body_left.min(bytes.len()));
            self.body_left -= body.len();
            if let (Some(first), true) = (body.first(), self.is_body_new) {
                self.is_body_new = false;
                self.last_has_begun |= *first >= FIRST_LAST_REPLY;
            }
            let (part, rest) = rest.split_at((PREFIX_BYTES - self.prefix_bytes).min(rest.len()));
            bytes = rest;
            if let Some(free) = self.prefix.get_mut(self.prefix_bytes..self.prefix_bytes + part.len()) {
                free.copy_from_slice(part);
            }
            self.prefix_bytes += part.len();
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.body_left = usize::try_from(u32::from_le_bytes(self.prefix)).unwrap_or(usize::MAX);
                self.is_body_new = true;
            }
        }
    }

    /// Whether another reply may follow. After half a reply, the host would read a fault as the rest of that reply.
    /// After the last reply, the host reads nothing.
    fn may_continue(&self) -> bool {
        self.prefix_bytes == 0 && self.body_left == 0 && !self.last_has_begun
    }
}

enum Worker {
    Process(Child),
    Thread,
}

impl Worker {
    /// Waits for the worker to exit, and kills it if the call was not `in_time` or the worker does not exit. Returns
    /// the reason for the failure unless the worker exited successfully. A worker that hangs in the kernel is
    /// abandoned.
    async fn end(self, in_time: bool) -> Option<String> {
        match self {
            Self::Process(mut child) => {
                let ended = if in_time { timeout(EXIT_MAX, child.wait()).await.ok() } else { None };
                if ended.is_none() {
                    // The worker may have exited by itself in the meantime.
                    drop(child.start_kill());
                    drop(timeout(EXIT_MAX, child.wait()).await);
                }
                match ended {
                    Some(Ok(status)) if status.success() => None,
                    Some(Ok(status)) => Some(status.to_string()),
                    Some(Err(source)) => Some(source.to_string()),
                    None => Some("timeout".to_owned()),
                }
            }
            // A thread can't be killed; it ends at its next read or write of the socket.
            Self::Thread => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use waggle_protocol::{
        Reply, frame,
        reply::{Cause, Entry, Exited, Status},
    };

    use super::*;

    fn encoded(reply: &Reply<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(reply, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn another_reply_may_follow_only_between_replies() {
        let bytes = [&[3, 0, 0, 0, 2, 9, 9][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 3]].concat();
        for piece in 1..bytes.len() {
            let (mut sent, mut passed, mut ends) = (SentReplies::default(), 0, Vec::new());
            for piece in bytes.chunks(piece) {
                sent.pass(piece);
                passed += piece.len();
                if sent.may_continue() {
                    ends.push(passed);
                }
            }
            assert!(ends.iter().all(|end| [7, 11, 16].contains(end)), "{ends:?}");
            assert_eq!(ends.last(), Some(&16));
        }
    }

    #[test]
    fn no_reply_may_follow_the_last_one() {
        let entry = Entry { name: b"a".to_vec(), mode: 0, size: 0, modified_unix_s: 0 };
        let (status, cause) = (Status::Code(0), Cause::Itself);
        let exited = Exited::new(status, cause, 0);
        for reply in [
            Reply::Stdout(b"9"),
            Reply::Stderr(b"9"),
            Reply::Data(b"9"),
            Reply::Entries(vec![entry]),
            Reply::Exited(exited),
            Reply::Written { bytes: 0 },
            Reply::FileEnd { size: 0 },
            Reply::ListEnd { total: 0, total_is_minimum: false, too_deep: false, next: None },
            Reply::ClockSet { background_memory_kills: 0 },
            Reply::Done,
            Reply::Fault(fault(FaultKind::Other, "no")),
        ] {
            let is_last = match reply {
                Reply::Stdout(_) | Reply::Stderr(_) | Reply::Data(_) | Reply::Entries(_) => false,
                Reply::Exited(_)
                | Reply::Written { .. }
                | Reply::FileEnd { .. }
                | Reply::ListEnd { .. }
                | Reply::ClockSet { .. }
                | Reply::Done
                | Reply::Fault(_) => true,
            };
            let bytes = [encoded(&Reply::Data(&[9; 10])), encoded(&reply)].concat();
            for piece in 1..=bytes.len() {
                let mut sent = SentReplies::default();
                bytes.chunks(piece).for_each(|piece| sent.pass(piece));
                assert_eq!((sent.last_has_begun, sent.may_continue()), (is_last, !is_last), "{reply:?}");
            }
        }
    }
}
