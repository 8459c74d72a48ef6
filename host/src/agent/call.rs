// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One call on its own stream: sends the request and its body to the agent, and receives replies until the last one.

use std::{future::pending, time::Duration};

use tokio::{io, pin, time::timeout};
use waggle_link::{FrameReader, FrameWriter, Opener, ReceiveFault, SendFault, Stream};
use waggle_protocol::{CHUNK_BYTES_MAX, Input, REFUSED_MAX, Reply, Request, reply};
use waggle_shared::printable;

use super::fault::AgentFault;
use crate::domain::{
    call_fault::CallFault,
    command::{EndCause, Executed, RefusedCall},
    guest_path::GuestPath,
    machine::PortFuture,
    output::{Output, OutputFile},
};

/// Maximum time to wait for the link's end after a call's stream has broken. The link's error is more precise than the
/// stream's error.
const LINK_END_MAX: Duration = Duration::from_millis(300);

/// Maximum length of a system call's name in bytes; Linux's longest has 23.
const SYSTEM_CALL_NAME_BYTES_MAX: usize = 32;

/// A call to send, and its timeouts.
pub(super) struct Call<'a> {
    /// The first message.
    pub(super) request: Request,
    /// The parts of the body, sent in chunks after the request.
    pub(super) body: [&'a [u8]; 2],
    /// Timeout for opening the stream, and then for the rest of the call. The agent should respond much earlier.
    pub(super) within: Duration,
    /// Maximum time from the cancel to the last reply.
    pub(super) cancel_within: Duration,
}

impl Call<'_> {
    /// Makes the call. `on_reply` receives each reply except a fault and, for the last reply, returns the result. When
    /// `cancelled` resolves, the host sends a cancel and waits for the last reply. Dropping the future resets the
    /// stream, and the agent then ends the call's work.
    pub(super) async fn make<T>(
        self,
        link: &Opener,
        cancelled: PortFuture<'_, ()>,
        on_reply: impl FnMut(Reply<'_>) -> Result<Option<T>, AgentFault>,
    ) -> Result<T, CallFault> {
        let opened = timeout(self.within, link.open()).await.map_err(|_| AgentFault::Silent { within: self.within })?;
        let stream = opened.map_err(|fault| CallFault::Gone { reason: fault.to_string() })?;
        let (read, write) = io::split(stream);
        let receiving = receive(link, FrameReader::new(read), on_reply);
        pin!(receiving);
        let made = async {
            let mut writer = FrameWriter::new(write);
            tokio::select! {
                // Polls in this order, so that even a call that is cancelled at the start sends its request first. A
                // cancel cannot be the first message.
                biased;
                received = &mut receiving => return received,
                () = self.send(&mut writer) => {}
                () = cancelled => {}
            }
            // The writer first finishes a partly sent chunk. A guest that does not read this chunk receives no cancel.
            let cancel = async {
                // If the stream is broken, the reader reports the error.
                let _sent = writer.send(&Input::Cancel).await;
                pending().await
            };
            let last = async {
                tokio::select! {
                    received = &mut receiving => received,
                    never = cancel => never,
                }
            };
            let ended = timeout(self.cancel_within, last).await;
            ended.unwrap_or_else(|_elapsed| Err(AgentFault::Silent { within: self.cancel_within }.into()))
        };
        let made = timeout(self.within, made).await;
        made.unwrap_or_else(|_elapsed| Err(AgentFault::Silent { within: self.within }.into()))
    }

    /// Sends the request and its body, and never resolves, so that the caller's `select!` waits for the replies. If
    /// sending fails, the reader receives a reply or the stream's end.
    async fn send(&self, writer: &mut FrameWriter<io::WriteHalf<Stream>>) {
        let body = async {
            writer.send(&self.request).await?;
            for chunk in self.body.iter().flat_map(|part| part.chunks(CHUNK_BYTES_MAX)) {
                writer.send(&Input::Data(chunk)).await?;
            }
            Ok::<(), SendFault>(())
        };
        let _sent = body.await;
        pending().await
    }
}

async fn receive<T>(
    link: &Opener,
    mut reader: FrameReader<io::ReadHalf<Stream>>,
    mut on_reply: impl FnMut(Reply<'_>) -> Result<Option<T>, AgentFault>,
) -> Result<T, CallFault> {
    loop {
        match reader.receive::<Reply<'_>>().await {
            Ok(Some(Reply::Fault(fault))) => return Err(super::fault::refused(&fault)),
            Ok(Some(reply)) => {
                if let Some(outcome) = on_reply(reply)? {
                    return Ok(outcome);
                }
            }
            Ok(None) => return Err(cut(link, AgentFault::Cut).await),
            Err(source @ ReceiveFault::Io { .. }) => return Err(cut(link, AgentFault::Receive { source }).await),
            Err(source @ ReceiveFault::Frame { .. }) => return Err(AgentFault::Receive { source }.into()),
        }
    }
}

/// Returns the error for a broken stream. When a machine dies, its streams may end before its link, so this waits for
/// the link's error.
async fn cut(link: &Opener, fault: AgentFault) -> CallFault {
    match timeout(LINK_END_MAX, link.ended()).await {
        Ok(ended) => CallFault::Gone { reason: ended.to_string() },
        Err(_elapsed) => fault.into(),
    }
}

/// Converts the reply at a command's end into the domain's type. The command's output arrived in earlier replies.
pub(super) fn executed(exited: reply::Exited) -> Executed {
    let (exit_code, signal) = match exited.status {
        reply::Status::Code(code) => (i32::from(code), None),
        reply::Status::Signal(signal) => (128 + i32::from(signal), Some(i32::from(signal))),
    };
    let cause = match exited.cause {
        reply::Cause::Itself => EndCause::Exited,
        reply::Cause::Deadline => EndCause::TimedOut,
        reply::Cause::Cancelled => EndCause::Cancelled,
        reply::Cause::Memory => EndCause::OutOfMemory,
    };
    let output = |file: Option<reply::OutputFile>| {
        // An invalid path is treated as no file.
        let file = file.and_then(|file| {
            Some(OutputFile { path: guest_path(file.path)?, bytes: file.bytes, complete: file.complete })
        });
        Output::default().with_file(file)
    };
    Executed {
        exit_code,
        signal,
        cause,
        duration: Duration::from_micros(exited.duration_us),
        stdout: output(exited.stdout_file),
        stderr: output(exited.stderr_file),
        hint: None,
        background_file: exited.background_file.and_then(guest_path),
        refused: exited.refused.into_iter().take(REFUSED_MAX).filter_map(refused_call).collect(),
    }
}

/// Converts a path from the guest; `None` if it is invalid.
fn guest_path(path: String) -> Option<GuestPath> {
    if path.chars().any(printable::is_harmful) { None } else { GuestPath::parse(path).ok() }
}

/// Converts a refused call from the guest; `None` if its name is not one of a system call.
fn refused_call(call: reply::RefusedCall) -> Option<RefusedCall> {
    let is_name = |name: &str| {
        (1..=SYSTEM_CALL_NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    is_name(&call.name).then_some(RefusedCall { name: call.name, count: call.count })
}
