// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The connection to QEMU's monitor, which speaks the QEMU Machine Protocol (QMP): one JSON object per line.
//!
//! QEMU may be hostile, because its guest may have taken it over. So its lines are limited in length and number, and
//! nothing in them has an effect except whether a command succeeded.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, recv};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::machines::{line_socket, roles::REASON_CHARS_MAX, runner_messages::DEVICES_BYTES_MAX};

/// Timeout of one command. It takes milliseconds, but more on a busy host.
const COMMAND_MAX: Duration = Duration::from_secs(20);
/// Maximum length of a line, in bytes. The longest that QEMU sends here has a few hundred.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of lines before the answer to a command: QEMU also reports events.
const LINES_MAX: usize = 10_000;
/// The number of the set through which QEMU writes to a file of the host.
const FILE_SET: u32 = 1;

/// The runner's end of the connection.
pub(super) struct Monitor {
    socket: UnixStream,
    received: Vec<u8>,
    /// Whether QEMU accepts commands. Until then it sends no events.
    is_open: bool,
    /// Number of sent commands. The answer to a command has its number.
    sent: u64,
}

/// A line of QEMU. An event has neither an answer nor an error.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Problem>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Problem {
    desc: String,
}

impl Monitor {
    /// Creates the connection. Returns QEMU's end, too.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn connect() -> io::Result<(Self, UnixStream)> {
        let (socket, qemu) = UnixStream::pair()?;
        Ok((Self { socket, received: Vec::new(), is_open: false, sent: 0 }, qemu))
    }

    /// Stops the guest.
    ///
    /// # Errors
    /// QEMU refused, or does not answer.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        if !self.is_open {
            self.execute("qmp_capabilities", &json!({}), None)?;
            self.is_open = true;
        }
        self.execute("stop", &json!({}), None)
    }

    /// Lets the guest continue.
    ///
    /// # Errors
    /// QEMU refused, or does not answer.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.execute("cont", &json!({}), None)
    }

    /// Writes the state of the devices of a stopped guest into the file.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn save_devices(&mut self, file: &File) -> io::Result<()> {
        // QEMU takes only a descriptor that was opened for exactly what it does.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writable = OpenOptions::new().write(true).open(path)?;
        self.execute("add-fd", &json!({ "fdset-id": FILE_SET }), Some(writable.as_fd()))?;
        // Xen's command is the only one that saves the devices without the memory.
        let arguments = json!({ "filename": format!("/dev/fdset/{FILE_SET}"), "live": false });
        let saved = self.execute("xen-save-devices-state", &arguments, None);
        self.execute("remove-fd", &json!({ "fdset-id": FILE_SET }), None)?;
        saved?;
        let bytes = file.metadata()?.len();
        if bytes == 0 || bytes > DEVICES_BYTES_MAX {
            return Err(io::Error::other(format!("QEMU wrote {bytes} bytes as the state of the devices")));
        }
        Ok(())
    }

    /// Reads and ignores what QEMU has sent: it would store unread events without a limit.
    ///
    /// # Errors
    /// QEMU has closed its end.
    pub(super) fn discard_events(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let (count, _) = recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let whole = self.received.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.received.drain(..whole);
        if self.received.len() > LINE_BYTES_MAX {
            self.received.clear();
        }
        Ok(())
    }

    fn execute(&mut self, command: &str, arguments: &Value, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let deadline = Instant::now() + COMMAND_MAX;
        self.sent += 1;
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": self.sent }));
        self.socket.set_write_timeout(Some(COMMAND_MAX))?;
        let mut unsent = line.as_bytes();
        let mut attached = file.as_slice();
        while !unsent.is_empty() {
            let sent = line_socket::send(&self.socket, unsent, attached)?;
            unsent = unsent.get(sent..).unwrap_or_default();
            attached = &[];
        }
        for _ in 0..LINES_MAX {
            let line = self.receive(deadline)?;
            let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                return Err(io::Error::other(format!("QEMU answered the command {command} with invalid JSON")));
            };
            // The late answer to an earlier command, or an event.
            if line.id != Some(self.sent) {
                continue;
            }
            if let Some(problem) = line.error {
                let reason: String = problem.desc.chars().take(REASON_CHARS_MAX).collect();
                return Err(io::Error::other(format!("QEMU refused the command {command}: {reason}")));
            }
            if line.answer.is_some() {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("QEMU did not answer the command {command}")))
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                return Ok(self.received.drain(..=end).collect());
            }
            if self.received.len() > LINE_BYTES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
