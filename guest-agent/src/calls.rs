// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! One stream of the call link: reads the request, has the work done, ends the stream.

use std::sync::Arc;

use tokio::{io, sync::mpsc, task::spawn_blocking};
use waggle_link::{FrameReader, FrameWriter, SendFault, Stream};
use waggle_protocol::{Fault, FaultKind, Reply, Request, TEXT_BYTES_MAX};

use crate::{clock, exec, files, guest::Served};

/// The two halves of a call's stream.
pub(crate) type Reader = FrameReader<io::ReadHalf<Stream>>;
pub(crate) type Writer = FrameWriter<io::WriteHalf<Stream>>;

/// Serves one call. If the agent is `busy`, one that makes work is refused. A stream that breaks ends the call's work;
/// there is nobody left to tell.
pub(crate) async fn serve_call(stream: Stream, served: Arc<Served>, busy: bool, power_off: mpsc::Sender<()>) {
    let (read, write) = io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let request = match reader.receive::<Request>().await {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(fault) => {
            let fault = Fault { kind: FaultKind::BadRequest, message: fault.to_string() };
            return end(&mut writer, Reply::Fault(fault)).await;
        }
    };
    if busy && !matches!(request, Request::SetClock { .. } | Request::PowerOff) {
        let message = "as many calls run in this machine as may; wait for one to end".to_owned();
        return end(&mut writer, Reply::Fault(Fault { kind: FaultKind::Busy, message })).await;
    }
    match request {
        Request::Exec(request) => {
            if let Some(last) = exec::run(&served, &request, &mut reader, &mut writer).await {
                end(&mut writer, last).await;
            }
        }
        Request::WriteFile { .. } | Request::ReadFile { .. } | Request::ListFiles { .. } => {
            if let Some(fault) = files::relay(&served, &request, &mut reader, &mut writer).await {
                end(&mut writer, Reply::Fault(fault)).await;
            }
        }
        Request::SetClock { unix_ns } => {
            let last = match served.room {
                None => Reply::Done,
                Some(_) => match clock::set(unix_ns) {
                    Ok(()) => Reply::Done,
                    Err(errno) => {
                        let message = format!("failed to set the clock: {errno}");
                        Reply::Fault(Fault { kind: FaultKind::Other, message })
                    }
                },
            };
            end(&mut writer, last).await;
        }
        Request::PowerOff => {
            if served.room.is_some() {
                let _synced = spawn_blocking(nix::unistd::sync).await;
            }
            end(&mut writer, Reply::Done).await;
            // A full queue means that somebody asked already.
            let _asked = power_off.try_send(());
        }
    }
}

/// Sends the last reply and ends the stream.
async fn end(writer: &mut Writer, mut last: Reply<'_>) {
    if let Reply::Fault(fault) = &mut last {
        // It may name a path, or a program, as long as the host likes.
        fault.message.truncate(fault.message.floor_char_boundary(TEXT_BYTES_MAX));
    }
    let ended: Result<(), SendFault> = async {
        writer.send(&last).await?;
        writer.finish().await
    }
    .await;
    // A host that is gone has reset the stream: the reply has no reader.
    drop(ended);
}
