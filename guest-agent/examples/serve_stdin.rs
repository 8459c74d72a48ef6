// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The agent without a machine, for benchmarks. Serves calls on the socket at stdin, with the first argument as the
//! root folder.

use std::{env, error::Error, io, os::fd::AsFd, os::unix::net::UnixStream as Socket};

use guest_agent::{Guest, Mode, dial::SingleStream, serve};
use tokio::net::UnixStream;
use waggle_protocol::Origin;

fn main() -> Result<(), Box<dyn Error>> {
    let root = env::args_os().nth(1).ok_or("the first argument must be the root folder")?.into();
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let guest = Guest { origin: Origin::Host, root, mode: Mode::Caller, env, working_directory: None };
    // The runtime has one thread, as in a machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Ok(serve(SingleStream::new(UnixStream::from_std(socket)?), guest, || {}).await?) })
}
