// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Connects to the host: over vsock, over a virtio-serial port, or over one given stream.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use waggle_link::Past;

use crate::{console::report, ports::Port, sys};

/// Maximum number of bytes in flight towards the guest on one connection. The kernel resets a connection if many small
/// packets arrive while the reader is slow. A buffer of this size prevents the reset.
const VSOCK_BUFFER_BYTES: u64 = 8 * 1024 * 1024;

/// Delay between two attempts. The host listens before the machine starts, so attempts fail only until the vsock device
/// is ready.
const RETRY: Duration = Duration::from_millis(20);

/// Maximum number of attempts; together they take about 5 s.
const TRIES: u32 = 250;

/// Connects to the host for each generation of a link.
pub trait Connector {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Returns a stream to the host, and whether an earlier process may have used the stream; `None` if there will be
    /// no further stream.
    fn connect(&mut self) -> impl Future<Output = io::Result<Option<(Self::Stream, Past)>>> + Send;
}

/// A stream for a single generation.
#[derive(Debug)]
pub struct SingleStream<S>(Option<S>);

impl<S> SingleStream<S> {
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self(Some(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connector for SingleStream<S> {
    type Stream = S;

    async fn connect(&mut self) -> io::Result<Option<(S, Past)>> {
        Ok(self.0.take().map(|stream| (stream, Past::None)))
    }
}

/// The way to the host for one link of a machine.
#[derive(Debug)]
pub(crate) enum Route {
    /// A port number of the host's vsock address.
    Vsock(u32),
    /// An open virtio-serial port.
    Port(OwnedFd),
}

impl Connector for Route {
    type Stream = HostStream;

    async fn connect(&mut self) -> io::Result<Option<(HostStream, Past)>> {
        Ok(Some(match self {
            Self::Vsock(port) => (HostStream::Vsock(connect_vsock(*port).await?), Past::None),
            Self::Port(port) => (HostStream::Port(Port::connect(port.as_fd()).await?), Past::Unknown),
        }))
    }
}

/// Returns the error of the last attempt.
async fn connect_vsock(port: u32) -> io::Result<VsockStream> {
    let mut tries = 0;
    loop {
        tries += 1;
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await {
            Ok(stream) => {
                if let Err(source) = sys::set_vsock_buffer(stream.as_fd(), VSOCK_BUFFER_BYTES) {
                    report(&format!("failed to enlarge the vsock buffer: {source}"));
                }
                return Ok(stream);
            }
            Err(source) if tries == TRIES => return Err(source),
            Err(_not_yet) => sleep(RETRY).await,
        }
    }
}

/// A byte stream to the host.
#[derive(Debug)]
pub(crate) enum HostStream {
    Vsock(VsockStream),
    Port(Port),
}

impl AsyncRead for HostStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Port(port) => Pin::new(port).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Port(port) => Pin::new(port).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Port(port) => Pin::new(port).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Port(port) => Pin::new(port).poll_shutdown(cx),
        }
    }
}
