// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest's name service: takes questions over UDP and TCP, whichever server they were for, and has the host answer.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use waggle_link::{FrameReader, FrameWriter};
use waggle_protocol::egress::{DNS_QUERY_BYTES_MAX, EGRESS_FRAME_BYTES_MAX, EgressRequest, FlowReply, Refusal};

use super::link::Carrier;
use crate::console::report;

/// Longest wait for the host's answer, in which it asks the system's name service.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A TCP connection without a question for so long is closed (RFC 7766, section 6.2.3).
const IDLE_MAX: Duration = Duration::from_secs(10);

/// After a socket failed, which the kernel's want of memory makes it do.
const RETRY: Duration = Duration::from_millis(50);

/// Bytes of a message's header (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;

/// Response codes (RFC 1035, section 4.1.1).
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// Answers what arrives at `socket`, as many questions at a time as `slots` has permits. Never ends.
pub(super) async fn answer_datagrams(socket: UdpSocket, carrier: Carrier, slots: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut answering = JoinSet::new();
    loop {
        while answering.try_join_next().is_some() {}
        // Nobody closes the semaphore.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (query, asker) = match socket.async_io(Interest::READABLE, || receive(&socket)).await {
            Ok(received) => received,
            Err(fault) => {
                report(&format!("failed to receive a question to the name service: {fault}"));
                sleep(RETRY).await;
                continue;
            }
        };
        let (socket, carrier) = (Arc::clone(&socket), carrier.clone());
        answering.spawn(async move {
            if let Some(answer) = ask(&carrier, &query).await {
                // An asker that is gone needs no answer, and one that lost it asks again.
                let _sent = socket.try_io(Interest::WRITABLE, || reply(&socket, &answer, &asker));
            }
            drop(slot);
        });
    }
}

/// Answers questions on a connection, one after the other, until it ends or is idle.
pub(super) async fn answer_stream(mut tcp: TcpStream, carrier: &Carrier, slots: &Semaphore) {
    let _ended: io::Result<()> = async {
        loop {
            let bytes = timeout(IDLE_MAX, tcp.read_u16()).await??;
            let mut query = vec![0; usize::from(bytes)];
            timeout(IDLE_MAX, tcp.read_exact(&mut query)).await??;
            let slot = slots.acquire().await.map_err(io::Error::other)?;
            let Some(answer) = ask(carrier, &query).await else { return Ok(()) };
            drop(slot);
            let mut message = u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
            message.extend(answer);
            timeout(IDLE_MAX, tcp.write_all(&message)).await??;
        }
    }
    .await;
}

/// The host's answer, or one that says why there is none. Nothing if what was asked is no question.
async fn ask(carrier: &Carrier, query: &[u8]) -> Option<Vec<u8>> {
    if query.len() > DNS_QUERY_BYTES_MAX {
        return None;
    }
    let asked = async {
        let (read, write) = tokio::io::split(carrier.open().await.ok_or(SERVER_FAILURE)?);
        let (mut reader, mut writer) = (FrameReader::bounded(read, EGRESS_FRAME_BYTES_MAX), FrameWriter::new(write));
        let failed = |_fault| SERVER_FAILURE;
        writer.send(&EgressRequest::Resolve { message: query }).await.map_err(failed)?;
        let reply = reader.receive::<FlowReply<'_>>().await;
        let answer = match reply {
            Ok(Some(FlowReply::Answer { message })) => Ok(message.to_vec()),
            Ok(Some(FlowReply::Refused { reason: Refusal::Policy })) => Err(REFUSED),
            Ok(Some(FlowReply::Refused { .. } | FlowReply::Connected) | None) | Err(_) => Err(SERVER_FAILURE),
        };
        // The answer is here; what becomes of the stream is the link's affair.
        let _finished = writer.finish().await;
        answer
    };
    let answer = timeout(ANSWER_MAX, asked).await.unwrap_or(Err(SERVER_FAILURE));
    answer.map_or_else(|code| failure(query, code), Some)
}

/// An answer of nothing but the question and a response code.
fn failure(query: &[u8], code: u8) -> Option<Vec<u8>> {
    let [id0, id1, flags0, _, questions0, questions1, ..] = *query.first_chunk::<HEADER_BYTES>()?;
    const IS_RESPONSE: u8 = 0x80;
    const RECURSION_AVAILABLE: u8 = 0x80;
    if flags0 & IS_RESPONSE != 0 {
        return None;
    }
    // Resolvers take an answer without their question for somebody else's.
    let question = if (questions0, questions1) == (0, 1) { question(query) } else { None };
    let count = u8::from(question.is_some());
    let mut answer = vec![id0, id1, flags0 | IS_RESPONSE, RECURSION_AVAILABLE | code, 0, count, 0, 0, 0, 0, 0, 0];
    answer.extend(question.unwrap_or_default());
    Some(answer)
}

/// The bytes of a message's first question.
fn question(message: &[u8]) -> Option<&[u8]> {
    const TYPE_AND_CLASS_BYTES: usize = 4;
    let mut at = HEADER_BYTES;
    loop {
        let label = usize::from(*message.get(at)?);
        // The two upper bits say that it is no plain label, which a question needs not be.
        if label > 63 {
            return None;
        }
        at += 1 + label;
        if label == 0 {
            return message.get(HEADER_BYTES..at + TYPE_AND_CLASS_BYTES);
        }
    }
}

/// Who asked, and at which address.
struct Asker {
    from: SockaddrStorage,
    at: At,
}

enum At {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
    Unknown,
}

fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, Asker)> {
    let mut query = vec![0; DNS_QUERY_BYTES_MAX + 1];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut query)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut at = At::Unknown;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
            at = At::V4(info);
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            at = At::V6(info);
        }
    }
    let from = received.address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let bytes = received.bytes;
    query.truncate(bytes);
    Ok((query, Asker { from, at }))
}

/// Answers from the very address that was asked, or the asker would not take it.
fn reply(socket: &UdpSocket, answer: &[u8], asker: &Asker) -> io::Result<()> {
    let (v4, v6);
    let control = match asker.at {
        At::V4(info) => {
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
            vec![ControlMessage::Ipv4PacketInfo(&v4)]
        }
        At::V6(info) => {
            v6 = libc::in6_pktinfo { ipi6_ifindex: 0, ..info };
            vec![ControlMessage::Ipv6PacketInfo(&v6)]
        }
        At::Unknown => Vec::new(),
    };
    let parts = [IoSlice::new(answer)];
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&asker.from))?;
    Ok(())
}

/// Whether a connection to this address is one to a name server.
pub(super) fn is_name_server(to: SocketAddr) -> bool {
    to.port() == waggle_protocol::egress::DNS_PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07example\x03org\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

    #[test]
    fn a_failure_repeats_the_question_and_nothing_else() {
        let answer = failure(QUERY, SERVER_FAILURE).unwrap();
        assert_eq!(answer, b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01");
    }

    #[test]
    fn what_is_no_question_is_not_answered_and_what_is_cut_has_none_to_repeat() {
        assert_eq!(failure(b"", REFUSED), None);
        assert_eq!(failure(&QUERY[..11], REFUSED), None);
        assert_eq!(failure(b"\x12\x34\x81\x20\0\x01\0\0\0\0\0\x01", REFUSED), None);
        let expected = b"\x12\x34\x81\x85\0\0\0\0\0\0\0\0".to_vec();
        for cut in 12..QUERY.len() - 11 - 4 {
            assert_eq!(failure(&QUERY[..cut], REFUSED), Some(expected.clone()), "{cut}");
        }
        let mut compressed = QUERY.to_vec();
        compressed[12] = 0xc0;
        assert_eq!(failure(&compressed, REFUSED), Some(expected));
    }
}
