// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two output pipes of a command. Replies carry the bytes of each pipe to the host in order.

use std::{io, mem, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use waggle_link::SendFault;
use waggle_protocol::{
    CHUNK_BYTES_MAX, Reply,
    reply::OutputFile,
    request::{Keep, User},
};

use super::{
    output_pipe::OutputPipe,
    spool::{OutputFiles, Spool},
};
use crate::{platform::Platform, streams::Writer};

/// Time for which small pieces of output gather in the pipes after a message, and for which the end of a line is waited
/// for. A line that is written as a whole after a pause is sent at once.
const GATHERING: Duration = Duration::from_millis(5);

/// Size of a piece of output in bytes above which more output is not waited for.
const SMALL_BYTES: usize = 4096;

/// Maximum time to wait for further output after the command has exited, while nothing arrives. A reader that the
/// command started, such as `tee`, then has nothing more to write, or is a server.
const QUIET_MAX: Duration = Duration::from_millis(500);

/// Maximum time to wait for further output after the command has exited.
const SETTLED_MAX: Duration = Duration::from_millis(1500);

/// Maximum capacity of a pipe, in bytes: Linux's default for `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

pub(super) struct Output {
    stdout: Source,
    stderr: Source,
}

impl Output {
    /// Opens both pipes for a command of `user`. Also returns the writing ends, first of stdout, then of stderr.
    pub(super) fn open(
        platform: &Platform,
        files: &Arc<OutputFiles>,
        keep: Keep,
        user: User,
    ) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let open = |name, reply| {
            let (pipe, writing) = OutputPipe::open()?;
            platform.set_owner(&writing, user)?;
            let buffer = vec![0; CHUNK_BYTES_MAX].into_boxed_slice();
            let spool = Spool::new(Arc::clone(files), keep, name, user);
            Ok::<_, io::Error>((Source { pipe: Some(pipe), reply, buffer, held: 0, spool }, writing))
        };
        let (stdout, stdout_end) = open("stdout", |bytes| Reply::Stdout(bytes))?;
        let (stderr, stderr_end) = open("stderr", |bytes| Reply::Stderr(bytes))?;
        Ok((Self { stdout, stderr }, stdout_end, stderr_end))
    }

    /// Sends output as it arrives. Resolves only if sending fails. Dropping the future loses no bytes: each is in the
    /// writer and the spool, in a buffer, or still in its pipe.
    pub(super) async fn stream(&mut self, writer: &mut Writer) {
        loop {
            let (read, sent) = tokio::select! {
                read = self.stdout.read() => (read, self.stdout.pass_on(read, writer).await),
                read = self.stderr.read() => (read, self.stderr.pass_on(read, writer).await),
            };
            if sent.is_err() {
                return;
            }
            self.stdout.spool.flush().await;
            self.stderr.spool.flush().await;
            // A program that writes each line on its own would otherwise cause a message for each.
            if read < SMALL_BYTES {
                sleep(GATHERING).await;
            }
        }
    }

    /// Sends the output that processes of the command still write after the command has exited: `cmd > >(tee log)`
    /// leaves `tee` behind with unwritten lines. Resolves when the pipes have ended, or after a limited time.
    pub(super) async fn settle(&mut self, writer: &mut Writer) -> Result<(), SendFault> {
        self.drain(writer).await?;
        let end = Instant::now() + SETTLED_MAX;
        while self.is_open() {
            let quiet_until = end.min(Instant::now() + QUIET_MAX);
            tokio::select! {
                read = self.stdout.read() => self.stdout.pass_on(read, writer).await?,
                read = self.stderr.read() => self.stderr.pass_on(read, writer).await?,
                () = sleep_until(quiet_until) => break,
            }
            self.stdout.spool.flush().await;
            self.stderr.spool.flush().await;
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether a process may have one of the pipes open.
    pub(super) fn is_open(&self) -> bool {
        self.stdout.pipe.is_some() || self.stderr.pipe.is_some()
    }

    /// Sends the bytes that are in the pipes now, without waiting for more.
    pub(super) async fn drain(&mut self, writer: &mut Writer) -> Result<(), SendFault> {
        for source in [&mut self.stdout, &mut self.stderr] {
            // At most one full pipe is read, because a background child may write faster than this loop reads.
            let mut left = PIPE_BYTES_MAX;
            while left > 0
                && let Some(read) = source.read_now()
            {
                left = left.saturating_sub(read);
                source.pass_on(read, writer).await?;
                source.spool.flush().await;
            }
        }
        Ok(())
    }

    /// Returns the files that contain stdout and stderr (`None` for a short output), and the pipes that are open.
    pub(super) async fn finish(self) -> ([Option<OutputFile>; 2], [Option<OutputPipe>; 2]) {
        let stdout = self.stdout.spool.finish().await;
        ([stdout, self.stderr.spool.finish().await], [self.stdout.pipe, self.stderr.pipe])
    }
}

struct Source {
    pipe: Option<OutputPipe>,
    reply: fn(&[u8]) -> Reply<'_>,
    buffer: Box<[u8]>,
    /// Number of bytes in the buffer that were read, but not yet returned.
    held: usize,
    spool: Spool,
}

impl Source {
    /// Reads into the buffer, and returns the number of bytes; 0 at the end. Stays pending if the pipe was removed.
    /// Some programs write a line and its end separately, so the end of a small piece is waited for briefly. Dropping
    /// the future loses no bytes.
    async fn read(&mut self) -> usize {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        if self.held == 0 {
            self.held = pipe.read(&mut self.buffer).await;
        }
        let piece = self.buffer.get(..self.held).unwrap_or_default();
        if (1..SMALL_BYTES).contains(&self.held) && !piece.ends_with(b"\n") {
            sleep(GATHERING).await;
            let rest = self.buffer.get_mut(self.held..).unwrap_or_default();
            self.held += pipe.read_now(rest).unwrap_or(0);
        }
        mem::take(&mut self.held)
    }

    /// Reads without waiting, and returns the number of bytes; `None` if the pipe is empty or closed.
    fn read_now(&mut self) -> Option<usize> {
        let pipe = self.pipe.as_ref()?;
        match mem::take(&mut self.held) {
            0 => pipe.read_now(&mut self.buffer).ok().filter(|read| *read > 0),
            held => Some(held),
        }
    }

    /// Passes the first `read` bytes of the buffer to the spool and the writer. Removes the pipe if `read` is 0.
    async fn pass_on(&mut self, read: usize, writer: &mut Writer) -> Result<(), SendFault> {
        let bytes = self.buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            self.pipe = None;
            return Ok(());
        }
        self.spool.push(bytes);
        writer.send(&(self.reply)(bytes)).await
    }
}
