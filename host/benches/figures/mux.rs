// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Speaks to a kept `ssh` connection as its own client does (OpenSSH's PROTOCOL.mux, version 4), but without starting a
//! program for each call: the rival is sshd, not the start of `ssh`.

use std::{
    io::{IoSlice, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

const HELLO: u32 = 1;
const VERSION: u32 = 4;
const NEW_SESSION: u32 = 0x1000_0002;
const EXITED: u32 = 0x8000_0004;
const OPENED: u32 = 0x8000_0006;
/// No character ends the session.
const NO_ESCAPE: u32 = 0xffff_ffff;

/// A command that runs over a kept connection.
pub(crate) struct Session {
    master: UnixStream,
}

impl Session {
    /// Starts a command with its stdin, stdout and stderr.
    pub(crate) fn start(socket: &Path, command: &str, stdio: [OwnedFd; 3]) -> Self {
        let mut session = Self { master: UnixStream::connect(socket).unwrap() };
        session.send(&[number(HELLO), number(VERSION)].concat());
        assert_eq!(field(&session.receive(), 0), HELLO);
        let flags = [0_u32; 4].map(number).concat();
        let request = [number(NEW_SESSION), number(0), text(""), flags, number(NO_ESCAPE), text("dumb"), text(command)];
        session.send(&request.concat());
        for descriptor in stdio {
            let rights = [descriptor.as_raw_fd()];
            let control = [ControlMessage::ScmRights(&rights)];
            sendmsg::<()>(session.master.as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::empty(), None)
                .unwrap();
        }
        assert_eq!(field(&session.receive(), 0), OPENED);
        session
    }

    /// Waits for its end; gives its exit code, if it has one: of a signal, `ssh` says nothing and only closes.
    pub(crate) fn wait(mut self) -> Option<u32> {
        let last = self.next()?;
        (field(&last, 0) == EXITED).then(|| field(&last, 2))
    }

    fn send(&mut self, packet: &[u8]) {
        let length = u32::try_from(packet.len()).unwrap();
        self.master.write_all(&[&length.to_be_bytes(), packet].concat()).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        self.next().unwrap()
    }

    /// The next packet, or none at the end.
    fn next(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.master.read_exact(&mut length).ok()?;
        let mut packet = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.master.read_exact(&mut packet).unwrap();
        Some(packet)
    }
}

fn number(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

fn text(text: &str) -> Vec<u8> {
    [&number(u32::try_from(text.len()).unwrap()), text.as_bytes()].concat()
}

fn field(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*packet.get(at * 4..).unwrap().first_chunk().unwrap())
}
