// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! This program as ssh's `ProxyCommand` with `ProxyUseFdpass`: connects to a port of a machine and hands the connection
//! over, so that nothing stands between ssh and the machine's socket.

use std::{
    io::{IoSlice, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// The word that makes this program do that.
pub(crate) const SUBCOMMAND: &str = "hand-over";

/// The options with which ssh reaches `port` by the socket that `vhost-device-vsock` listens on.
pub(crate) fn options(socket: &Path, port: u32) -> Vec<String> {
    let this = std::env::current_exe().unwrap();
    let command = format!("ProxyCommand={} {SUBCOMMAND} {} {port}", this.display(), socket.display());
    ["-o".to_owned(), command, "-o".to_owned(), "ProxyUseFdpass=yes".to_owned()].to_vec()
}

/// Does it: `arguments` are the socket and the port.
pub(crate) fn run(arguments: &[String]) {
    let [socket, port] = arguments else { panic!("a socket and a port are needed") };
    let mut machine = UnixStream::connect(socket).unwrap();
    machine.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        machine.read_exact(&mut byte).unwrap();
    }
    let rights = [machine.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(std::io::stdout().as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::empty(), None).unwrap();
}
