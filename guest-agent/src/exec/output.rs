// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two output pipes of a command. Replies carry the bytes of each pipe to the host in order.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{io::AsyncReadExt, net::unix::pipe};
use waggle_link::SendFault;
use waggle_protocol::{
    CHUNK_BYTES_MAX, Reply,
    reply::OutputFile,
    request::{Keep, User},
};

use super::spool::{OutputFiles, Spool};
use crate::{platform::Platform, streams::Writer};

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
            let (reading, writing) = pipe2(OFlag::O_CLOEXEC)?;
            platform.set_owner(&writing, user)?;
            let pipe = Some(pipe::Receiver::from_owned_fd(reading)?);
            let buffer = vec![0; CHUNK_BYTES_MAX].into_boxed_slice();
            let spool = Spool::new(Arc::clone(files), keep, name, user);
            Ok::<_, io::Error>((Source { pipe, reply, buffer, spool }, writing))
        };
        let (stdout, stdout_end) = open("stdout", |bytes| Reply::Stdout(bytes))?;
        let (stderr, stderr_end) = open("stderr", |bytes| Reply::Stderr(bytes))?;
        Ok((Self { stdout, stderr }, stdout_end, stderr_end))
    }

    /// Sends output as it arrives. Resolves only if sending fails. Dropping the future loses no bytes: all read bytes
    /// are in the writer and the spool, and the others are still in the pipes.
    pub(super) async fn stream(&mut self, writer: &mut Writer) {
        loop {
            let sent = tokio::select! {
                read = self.stdout.read() => self.stdout.pass_on(read, writer).await,
                read = self.stderr.read() => self.stderr.pass_on(read, writer).await,
            };
            if sent.is_err() {
                return;
            }
            self.stdout.spool.flush().await;
            self.stderr.spool.flush().await;
        }
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

    /// Returns the files that contain stdout and stderr; `None` for a short output.
    pub(super) async fn finish(self) -> (Option<OutputFile>, Option<OutputFile>) {
        let stdout = self.stdout.spool.finish().await;
        (stdout, self.stderr.spool.finish().await)
    }
}

struct Source {
    pipe: Option<pipe::Receiver>,
    reply: fn(&[u8]) -> Reply<'_>,
    buffer: Box<[u8]>,
    spool: Spool,
}

impl Source {
    /// Reads into the buffer, and returns the number of bytes; 0 at the end. Stays pending if the pipe was removed.
    async fn read(&mut self) -> usize {
        match &mut self.pipe {
            // An error of the pipe is treated as the end of the output.
            Some(pipe) => pipe.read(&mut self.buffer).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }

    /// Reads without waiting, and returns the number of bytes; `None` if the pipe is empty or closed. Calls the kernel
    /// directly, because the runtime might not have noticed the last bytes yet.
    fn read_now(&mut self) -> Option<usize> {
        let pipe = self.pipe.as_ref()?;
        nix::unistd::read(pipe.as_fd(), &mut self.buffer).ok().filter(|read| *read > 0)
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
