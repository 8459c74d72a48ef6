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
use waggle_protocol::{CHUNK_BYTES_MAX, Reply};

use crate::calls::Writer;

/// What a pipe can hold at most, in bytes: Linux's default for `/proc/sys/fs/pipe-max-size`.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

/// Stdout and stderr, each until it ends.
pub(super) struct Output {
    stdout: Source,
    stderr: Source,
}

impl Output {
    /// Both pipes, and their writing ends for the command: stdout's, then stderr's.
    pub(super) fn open() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, stdout_end) = Source::open(Which::Stdout)?;
        let (stderr, stderr_end) = Source::open(Which::Stderr)?;
        Ok((Self { stdout, stderr }, stdout_end, stderr_end))
    }

    /// Sends what arrives, for ever; resolves only if it can't be sent. Dropping the future loses nothing: what was
    /// read is in the writer by then, what was not is in the pipes.
    pub(super) async fn stream(&mut self, writer: &mut Writer) {
        loop {
            let sent = tokio::select! {
                read = self.stdout.read() => self.stdout.send(read, writer).await,
                read = self.stderr.read() => self.stderr.send(read, writer).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Sends what the pipes hold now, and waits for no more.
    pub(super) async fn drain(&mut self, writer: &mut Writer) -> Result<(), SendFault> {
        self.stdout.drain(writer).await?;
        self.stderr.drain(writer).await
    }
}

enum Which {
    Stdout,
    Stderr,
}

struct Source {
    pipe: Option<pipe::Receiver>,
    which: Which,
    buffer: Box<[u8]>,
}

impl Source {
    fn open(which: Which) -> io::Result<(Self, OwnedFd)> {
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC)?;
        let pipe = Some(pipe::Receiver::from_owned_fd(reading)?);
        Ok((Self { pipe, which, buffer: vec![0; CHUNK_BYTES_MAX].into_boxed_slice() }, writing))
    }

    /// The length of what arrived, 0 once at the end; then it never resolves again.
    async fn read(&mut self) -> usize {
        match &mut self.pipe {
            // A pipe that breaks is a pipe that ended.
            Some(pipe) => pipe.read(&mut self.buffer).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }

    async fn send(&mut self, read: usize, writer: &mut Writer) -> Result<(), SendFault> {
        let bytes = self.buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            self.pipe = None;
            return Ok(());
        }
        match self.which {
            Which::Stdout => writer.send(&Reply::Stdout(bytes)).await,
            Which::Stderr => writer.send(&Reply::Stderr(bytes)).await,
        }
    }

    async fn drain(&mut self, writer: &mut Writer) -> Result<(), SendFault> {
        // A child in the background may write faster than this reads: a full pipe is the most that there was.
        let mut left = PIPE_BYTES_MAX;
        while left > 0
            && let Some(pipe) = &self.pipe
        {
            // Asks the kernel itself: the runtime may not have heard of the last bytes yet.
            match nix::unistd::read(pipe.as_fd(), &mut self.buffer) {
                Ok(read) if read > 0 => {
                    left = left.saturating_sub(read);
                    self.send(read, writer).await?;
                }
                Ok(_) | Err(_) => break,
            }
        }
        Ok(())
    }
}
