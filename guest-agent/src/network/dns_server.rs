// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest's DNS server: receives queries to any address over UDP and TCP, and forwards them to the host.

use std::{
    io::{self, IoSlice, IoSliceMut},
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
use waggle_protocol::egress::{
    DNS_DATAGRAM_BYTES_MAX, DNS_QUERY_BYTES_MAX, EGRESS_REPLY_BYTES_MAX, EgressRequest, FlowReply, Refusal,
};

use super::link::LinkHandle;
use crate::{console::report, streams::halves};

/// Timeout for the host's answer. The host asks its system's resolver, which may take long.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Idle timeout of a TCP connection (RFC 7766, section 6.2.3).
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Delay after an error of the socket, which happens when the kernel is out of memory.
const RETRY: Duration = Duration::from_millis(50);

/// Size of a message's header in bytes (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;

/// Response codes (RFC 1035, section 4.1.1).
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// Answers queries that arrive at `socket`; the number of permits limits the queries in progress. Never returns.
pub(super) async fn answer_datagrams(socket: UdpSocket, link: LinkHandle, permits: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut answering = JoinSet::new();
    loop {
        while answering.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (query, client) = match socket.async_io(Interest::READABLE, || receive(&socket)).await {
            Ok(received) => received,
            Err(fault) => {
                report(&format!("failed to receive a DNS query: {fault}"));
                sleep(RETRY).await;
                continue;
            }
        };
        let (socket, link) = (Arc::clone(&socket), link.clone());
        answering.spawn(async move {
            if let Some(answer) = resolve(&link, &query).await.and_then(datagram) {
                // A client without an answer repeats its query.
                let _sent = socket.try_io(Interest::WRITABLE, || reply(&socket, &answer, &client));
            }
            drop(permit);
        });
    }
}

/// Answers the queries of a connection in turn, until the connection is closed or idle.
pub(super) async fn answer_stream(mut tcp: TcpStream, link: &LinkHandle, permits: &Semaphore) {
    let _ended: io::Result<()> = async {
        loop {
            let bytes = timeout(IDLE_MAX, tcp.read_u16()).await??;
            let mut query = vec![0; usize::from(bytes)];
            timeout(IDLE_MAX, tcp.read_exact(&mut query)).await??;
            let permit = permits.acquire().await.map_err(io::Error::other)?;
            let Some(answer) = resolve(link, &query).await else { return Ok(()) };
            drop(permit);
            let mut message = u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
            message.extend(answer);
            timeout(IDLE_MAX, tcp.write_all(&message)).await??;
        }
    }
    .await;
}

/// Returns the host's answer, or an answer with an error code; `None` if the message is not a valid query.
async fn resolve(link: &LinkHandle, query: &[u8]) -> Option<Vec<u8>> {
    if query.len() > DNS_QUERY_BYTES_MAX {
        return None;
    }
    let resolved = async {
        let stream = link.open().await.ok_or(SERVER_FAILURE)?;
        let (mut reader, mut writer) = halves(stream, EGRESS_REPLY_BYTES_MAX);
        let failed = |_fault| SERVER_FAILURE;
        writer.send(&EgressRequest::Resolve { message: query }).await.map_err(failed)?;
        let reply = reader.receive::<FlowReply<'_>>().await;
        let answer = match reply {
            Ok(Some(FlowReply::Answer { message })) => Ok(message.to_vec()),
            Ok(Some(FlowReply::Refused { reason: Refusal::Policy })) => Err(REFUSED),
            Ok(Some(FlowReply::Refused { .. } | FlowReply::Connected) | None) | Err(_) => Err(SERVER_FAILURE),
        };
        // The answer has arrived, so an error while closing the stream does not matter.
        let _finished = writer.finish().await;
        answer
    };
    let answer = timeout(ANSWER_MAX, resolved).await.unwrap_or(Err(SERVER_FAILURE));
    answer.map_or_else(|code| failure(query, code), Some)
}

/// Builds an answer that contains only the question and a response code; `None` if the message is not a query.
fn failure(query: &[u8], code: u8) -> Option<Vec<u8>> {
    let [id0, id1, flags0, _, questions0, questions1, ..] = *query.first_chunk::<HEADER_BYTES>()?;
    const IS_RESPONSE: u8 = 0x80;
    const RECURSION_AVAILABLE: u8 = 0x80;
    if flags0 & IS_RESPONSE != 0 {
        return None;
    }
    // Clients reject an answer that does not repeat their question.
    let question = if (questions0, questions1) == (0, 1) { question(query) } else { None };
    let count = u8::from(question.is_some());
    let mut answer = vec![id0, id1, flags0 | IS_RESPONSE, RECURSION_AVAILABLE | code, 0, count, 0, 0, 0, 0, 0, 0];
    answer.extend(question.unwrap_or_default());
    Some(answer)
}

/// Shortens an answer to the records that fit in a datagram, and marks it as truncated: the client may ask again over
/// TCP. Returns `None` for an invalid answer.
fn datagram(mut answer: Vec<u8>) -> Option<Vec<u8>> {
    const TRUNCATED: u8 = 0x02;
    const COUNTS_AT: usize = 6;
    if answer.len() <= DNS_DATAGRAM_BYTES_MAX {
        return Some(answer);
    }
    let mut end = HEADER_BYTES + question(&answer)?.len();
    let mut records: u16 = 0;
    while let Some(next) = record_end(&answer, end).filter(|next| *next <= DNS_DATAGRAM_BYTES_MAX) {
        (end, records) = (next, records + 1);
    }
    *answer.get_mut(2)? |= TRUNCATED;
    let counts = answer.get_mut(COUNTS_AT..HEADER_BYTES)?.as_chunks_mut::<2>().0;
    for count in counts {
        let kept = u16::from_be_bytes(*count).min(records);
        (*count, records) = (kept.to_be_bytes(), records - kept);
    }
    answer.truncate(end);
    Some(answer)
}

/// Returns the position behind the record at `at`.
fn record_end(message: &[u8], mut at: usize) -> Option<usize> {
    const FIXED_BYTES: usize = 10;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break at += 1,
            label @ 1..64 => at += 1 + label,
            // A pointer ends the name.
            _ => break at += 2,
        }
    }
    let data_bytes = message.get(at..at + FIXED_BYTES)?.last_chunk::<2>()?;
    let end = at + FIXED_BYTES + usize::from(u16::from_be_bytes(*data_bytes));
    (end <= message.len()).then_some(end)
}

/// Returns the bytes of a message's first question.
fn question(message: &[u8]) -> Option<&[u8]> {
    const TYPE_AND_CLASS_BYTES: usize = 4;
    let mut at = HEADER_BYTES;
    loop {
        let label = usize::from(*message.get(at)?);
        // A set upper bit marks a compressed or extended label, which a question does not need.
        if label > 63 {
            return None;
        }
        at += 1 + label;
        if label == 0 {
            return message.get(HEADER_BYTES..at + TYPE_AND_CLASS_BYTES);
        }
    }
}

/// The client of a query, and the address to which it sent the query.
struct Client {
    address: SockaddrStorage,
    server: PacketInfo,
}

enum PacketInfo {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
    Unknown,
}

fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, Client)> {
    let mut query = vec![0; DNS_QUERY_BYTES_MAX + 1];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut query)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut server = PacketInfo::Unknown;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
            server = PacketInfo::V4(info);
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            server = PacketInfo::V6(info);
        }
    }
    let address = received.address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let bytes = received.bytes;
    query.truncate(bytes);
    Ok((query, Client { address, server }))
}

/// Sends the answer from the address that was queried, because the client would reject any other sender.
fn reply(socket: &UdpSocket, answer: &[u8], client: &Client) -> io::Result<()> {
    let (v4, v6);
    let control = match client.server {
        PacketInfo::V4(info) => {
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
            vec![ControlMessage::Ipv4PacketInfo(&v4)]
        }
        PacketInfo::V6(info) => {
            v6 = libc::in6_pktinfo { ipi6_ifindex: 0, ..info };
            vec![ControlMessage::Ipv6PacketInfo(&v6)]
        }
        PacketInfo::Unknown => Vec::new(),
    };
    let parts = [IoSlice::new(answer)];
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&client.address))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07example\x03org\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

    #[test]
    fn failure_repeats_only_the_question() {
        let answer = failure(QUERY, SERVER_FAILURE).unwrap();
        assert_eq!(answer, b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01");
    }

    #[test]
    fn failure_ignores_non_queries_and_omits_invalid_questions() {
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

    /// An answer with a number of 100-byte texts, and one authority.
    fn answer(texts: u8) -> Vec<u8> {
        let mut answer = b"\x12\x34\x81\x80\0\x01\0\0\0\x01\0\0\x07example\x03org\0\0\x10\0\x01".to_vec();
        answer[7] = texts;
        for number in 0..texts {
            answer.extend(b"\xc0\x0c\0\x10\0\x01\0\0\0\x3c\0\x64");
            answer.extend([number; 100]);
        }
        answer.extend(b"\x03org\0\0\x06\0\x01\0\0\0\x3c\0\x02\0\0");
        answer
    }

    #[test]
    fn long_answers_are_truncated_after_whole_records() {
        assert_eq!(datagram(answer(3)), Some(answer(3)));
        let cut = datagram(answer(100)).unwrap();
        assert_eq!((cut.len(), &cut[2..12]), (29 + 4 * 112, &b"\x83\x80\0\x01\0\x04\0\0\0\0"[..]));
        assert_eq!(cut[12..], answer(100)[12..cut.len()]);
        // The authority does not fit.
        let (mut full, texts_end) = (answer(4), 29 + 4 * 112);
        full.extend([0; 40]);
        *full.get_mut(texts_end + 5 + 9).unwrap() = 42;
        let cut = datagram(full).unwrap();
        assert_eq!((cut.len(), &cut[6..10]), (texts_end, &[0, 4, 0, 0][..]));
        assert_eq!(datagram(vec![0xc0; 600]), None, "no question");
    }
}
