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
    /// started or was lost. Returns `None` once the stream has ended.
    pub(crate) async fn relay(&self, request: &Request, reader: &mut Reader, writer: &mut Writer) -> Option<Fault> {
        let (mut near, worker) = match self.start() {
            Ok(started) => started,
            Err(source) => return Some(fault_of(&source, "failed to start the file worker")),
        };
        if let Err(source) = FrameWriter::new(&mut near).send(request).await {
            return Some(fault(FaultKind::Other, source.to_string()));
        }
        let (mut replies, mut inputs) = near.split();
        let mut replied = Boundary::default();
        let answered = async {
            let mut buffer = vec![0; RELAY_BYTES];
            // A broken socket is treated like a closed one.
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
        if !host_listens {
            return None;
        }
        // After half a reply, the host would read a fault as the rest of that reply, so only the stream is closed.
        let fault = lost.filter(|_| replied.is_between_messages());
        if fault.is_none() {
            drop(writer.stream_mut().shutdown().await);
        }
        fault
    }

    fn start(&self) -> io::Result<(UnixStream, Worker)> {
        let (near, far) = Socket::pair()?;
        near.set_nonblocking(true)?;
        let near = UnixStream::from_std(near)?;
        let worker = match &*self.platform {
            Platform::Machine(sandbox) => {
                let mut command = Command::new(self.program.path());
                command.arg(WORKER).arg(&self.root).env_clear().current_dir("/").kill_on_drop(true);
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

/// Finds the boundaries of messages in a stream of bytes.
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
            if let Some(free) = self.prefix.get_mut(self.prefix_bytes..self.prefix_bytes + part.len()) {
                free.copy_from_slice(part);
            }
            self.prefix_bytes += part.len();
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.body_left = usize::try_from(u32::from_le_bytes(self.prefix)).unwrap_or(usize::MAX);
            }
        }
    }

    fn is_between_messages(&self) -> bool {
        self.prefix_bytes == 0 && self.body_left == 0
    }
}

enum Worker {
    Process(Child),
    Thread,
}

impl Worker {
    /// Waits for the worker to exit, and kills it if the call was not `in_time` or the worker does not exit. Returns a
    /// fault unless the worker exited successfully. A worker that hangs in the kernel is abandoned.
    async fn end(self, in_time: bool) -> Option<Fault> {
        match self {
            Self::Process(mut child) => {
                let ended = if in_time { timeout(EXIT_MAX, child.wait()).await.ok() } else { None };
                if ended.is_none() {
                    // The worker may have exited by itself in the meantime.
                    drop(child.start_kill());
                    drop(timeout(EXIT_MAX, child.wait()).await);
                }
                let reason = match ended {
                    Some(Ok(status)) if status.success() => return None,
                    Some(Ok(status)) => status.to_string(),
                    Some(Err(source)) => source.to_string(),
                    None => "timeout".to_owned(),
                };
                Some(fault(FaultKind::Other, format!("lost the file worker before it had answered: {reason}")))
            }
            // A thread can't be killed; it ends at its next read or write of the socket.
            Self::Thread => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundary_finds_message_ends_for_every_chunk_size() {
        let bytes = [&[3, 0, 0, 0, 9, 9, 9][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 9]].concat();
        for piece in 1..bytes.len() {
            let (mut boundary, mut passed, mut ends) = (Boundary::default(), 0, Vec::new());
            for piece in bytes.chunks(piece) {
                boundary.pass(piece);
                passed += piece.len();
                if boundary.is_between_messages() {
                    ends.push(passed);
                }
            }
            assert!(ends.iter().all(|end| [7, 11, 16].contains(end)), "{ends:?}");
            assert_eq!(ends.last(), Some(&16));
        }
    }
}
