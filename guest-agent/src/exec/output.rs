// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A command's two pipes: what arrives goes to the host as replies, each stream in its order.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{io::AsyncReadExt, net::unix::pipe};
use waggle_link::SendFault;
use waggle_protocol::{
    CHUNK_BYTES_MAX, Reply,
    reply::OutputFile,
    request::{Keep, User},
};

use super::spool::Spool;
use crate::{calls::Writer, guest::Served};

/// What a pipe can hold at most, in bytes: Linux's default for `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

/// Stdout and stderr, each until it ends.
pub(super) struct Output {
    stdout: Source,
    stderr: Source,
    user: User,
}

impl Output {
    /// Both pipes of a command of `user`'s, and their writing ends for it: stdout's, then stderr's.
    pub(super) fn open(served: &Served, keep: Keep, user: User) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, stdout_end) = Source::open(Which::Stdout, keep)?;
        let (stderr, stderr_end) = Source::open(Which::Stderr, keep)?;
        for end in [&stdout_end, &stderr_end] {
            served.give(end, user)?;
        }
        Ok((Self { stdout, stderr, user }, stdout_end, stderr_end))
    }

    /// Sends what arrives, for ever; resolves only if it can't be sent. Dropping the future loses nothing: what was
    /// read is in the writer and the spool by then, what was not is in the pipes.
    pub(super) async fn stream(&mut self, served: &Served, writer: &mut Writer) {
        loop {
            let sent = tokio::select! {
                read = self.stdout.read() => self.stdout.pass_on(read, writer).await,
                read = self.stderr.read() => self.stderr.pass_on(read, writer).await,
            };
            if sent.is_err() {
                return;
            }
            self.stdout.spool.flush(served, self.user).await;
            self.stderr.spool.flush(served, self.user).await;
        }
    }

    /// Sends what the pipes hold now, and waits for no more.
    pub(super) async fn drain(&mut self, served: &Served, writer: &mut Writer) -> Result<(), SendFault> {
        for source in [&mut self.stdout, &mut self.stderr] {
            // A child in the background may write faster than this reads: a full pipe is the most that there was.
            let mut left = PIPE_BYTES_MAX;
            while left > 0
                && let Some(read) = source.read_now()
            {
                left = left.saturating_sub(read);
                source.pass_on(read, writer).await?;
                source.spool.flush(served, self.user).await;
            }
        }
        Ok(())
    }

    /// Where each of the two can be read on, if it was long.
    pub(super) async fn finish(self, served: &Served) -> (Option<OutputFile>, Option<OutputFile>) {
        let stdout = self.stdout.spool.finish(served, self.user).await;
        (stdout, self.stderr.spool.finish(served, self.user).await)
    }
}

#[derive(Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

impl Which {
    fn extension(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

struct Source {
    pipe: Option<pipe::Receiver>,
    which: Which,
    buffer: Box<[u8]>,
    spool: Spool,
}

impl Source {
    fn open(which: Which, keep: Keep) -> io::Result<(Self, OwnedFd)> {
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC)?;
        let pipe = Some(pipe::Receiver::from_owned_fd(reading)?);
        let buffer = vec![0; CHUNK_BYTES_MAX].into_boxed_slice();
        Ok((Self { pipe, which, buffer, spool: Spool::new(keep, which.extension()) }, writing))
    }

    /// The length of what arrived, 0 once at the end; then it never resolves again.
    async fn read(&mut self) -> usize {
        match &mut self.pipe {
            // A pipe that breaks is a pipe that ended.
            Some(pipe) => pipe.read(&mut self.buffer).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }

    /// The length of what is there; `None` if nothing is. It asks the kernel itself: the runtime may not have heard of
    /// the last bytes yet.
    fn read_now(&mut self) -> Option<usize> {
        let pipe = self.pipe.as_ref()?;
        nix::unistd::read(pipe.as_fd(), &mut self.buffer).ok().filter(|read| *read > 0)
    }

    /// Hands what was read to the spool and the writer.
    async fn pass_on(&mut self, read: usize, writer: &mut Writer) -> Result<(), SendFault> {
        let bytes = self.buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            self.pipe = None;
            return Ok(());
        }
        self.spool.take(bytes);
        match self.which {
            Which::Stdout => writer.send(&Reply::Stdout(bytes)).await,
            Which::Stderr => writer.send(&Reply::Stderr(bytes)).await,
        }
    }
}
