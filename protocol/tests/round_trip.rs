// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Property tests: messages survive a round trip, and arbitrary bytes decode or fail without a panic.
#![expect(clippy::unwrap_used, reason = "a failed encoding is a failed test")]

use proptest::prelude::*;
use waggle_protocol::{
    CHUNK_BYTES_MAX, FRAME_BYTES_MAX, Fault, FaultKind, Hello, Input, Link, Reply, Request,
    boot::BootConfig,
    egress::{Address, DNS_QUERY_BYTES_MAX, EGRESS_FRAME_BYTES_MAX, EgressRequest, FlowReply},
    frame::{self, FrameFault},
    handshake::{self, HandshakeRefusal},
    name,
    reply::Entry,
    request::{Exec, Keep, Limits, Loader, Script, User},
};

fn framed<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).unwrap();
    bytes
}

fn body(bytes: &[u8]) -> &[u8] {
    let (prefix, body) = bytes.split_first_chunk().unwrap();
    assert_eq!(frame::body_bytes(*prefix, FRAME_BYTES_MAX).unwrap(), body.len());
    body
}

/// Names and paths with many escapes, and with parts of escapes.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let pieces: [&[u8]; 12] = [
        b"\\",
        b"x",
        b"\\x5C",
        b"\\xE9",
        b"\\xC3\\xA9",
        b"\\xe9",
        b"\xe9",
        b"\xc3",
        b"\xa9",
        "é".as_bytes(),
        b"/",
        b"a",
    ];
    let pieced = prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![pieced, prop::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_name_is_read_back_from_its_text(name in name()) {
        let text = name::to_text(&name);
        prop_assert_eq!(&*name::from_text(&text), &*name);
        prop_assert!(text.len() <= name::TEXT_BYTES_PER_BYTE_MAX * name.len());
    }

    #[test]
    fn text_of_a_path_is_that_of_its_names(path in name()) {
        let names: Vec<_> = path.split(|byte| *byte == b'/').map(name::to_text).collect();
        prop_assert_eq!(name::to_text(&path), names.join("/"));
    }

    #[test]
    fn any_text_is_a_name_without_new_slashes(text in ".*|([a/]|\\\\x?|5C|2F|E9|00)*") {
        let name = name::from_text(&text);
        let special = |bytes: &[u8]| bytes.iter().filter(|byte| matches!(byte, b'/' | 0)).count();
        prop_assert_eq!(special(&name), special(text.as_bytes()));
    }
}

proptest! {
    #[test]
    fn request_survives_a_round_trip(
        argv in prop::collection::vec(".*", 1..4),
        env in prop::collection::vec((".*", ".*"), 0..4),
        extension in "[a-z]{0,4}",
        bytes: u64,
        timeout_ms: u64,
    ) {
        let script = Some(Script { extension, bytes, loader: Some(Loader::Node) });
        let limits = Limits { memory_bytes: Some(bytes), pids: None, open_files: Some(7) };
        let (stdin_bytes, working_directory) = (bytes / 2, Some("/tmp".to_owned()));
        let (user, keep) = (User::Sandbox, Keep { above_bytes: bytes, bytes_max: 7 });
        let request =
            Request::Exec(Exec { argv, script, stdin_bytes, env, working_directory, user, timeout_ms, limits, keep });
        let encoded = framed(&request);
        prop_assert_eq!(frame::decode::<Request>(body(&encoded)).unwrap(), request);
    }

    #[test]
    fn chunk_survives_a_round_trip(chunk in prop::collection::vec(any::<u8>(), 0..2000)) {
        let encoded = framed(&Input::Data(&chunk));
        prop_assert_eq!(frame::decode::<Input<'_>>(body(&encoded)).unwrap(), Input::Data(&chunk));
        let encoded = framed(&Reply::Stderr(&chunk));
        prop_assert_eq!(frame::decode::<Reply<'_>>(body(&encoded)).unwrap(), Reply::Stderr(&chunk));
    }

    #[test]
    fn egress_messages_survive_a_round_trip(
        address: std::net::IpAddr, port: u16, bytes: u32, message in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let connect = EgressRequest::Connect { address: Address::from(address), port };
        prop_assert_eq!(std::net::IpAddr::from(Address::from(address)), address);
        for request in [connect, EgressRequest::Resolve { message: &message }] {
            let encoded = framed(&request);
            prop_assert_eq!(frame::decode::<EgressRequest<'_>>(body(&encoded)).unwrap(), request);
        }
        let encoded = framed(&FlowReply::Answer { message: &message });
        prop_assert_eq!(
            frame::decode::<FlowReply<'_>>(body(&encoded)).unwrap(),
            FlowReply::Answer { message: &message }
        );
    }

    #[test]
    fn entries_survive_a_round_trip(
        names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..255), 0..20),
        mode: u32, size: u64, modified_unix_s: i64,
    ) {
        let entries = names.into_iter().map(|name| Entry { name, mode, size, modified_unix_s }).collect();
        let reply = Reply::Entries(entries);
        let encoded = framed(&reply);
        prop_assert_eq!(frame::decode::<Reply<'_>>(body(&encoded)).unwrap(), reply);
    }

    /// Decoding never panics, and an accepted message survives a round trip.
    #[test]
    fn arbitrary_bytes_decode_or_fail_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(request) = frame::decode::<Request>(&bytes) {
            prop_assert_eq!(frame::decode::<Request>(body(&framed(&request))).unwrap(), request);
        }
        if let Ok(reply) = frame::decode::<Reply<'_>>(&bytes) {
            let again = framed(&reply);
            prop_assert_eq!(frame::decode::<Reply<'_>>(body(&again)).unwrap(), reply);
        }
        if let Ok(input) = frame::decode::<Input<'_>>(&bytes) {
            let again = framed(&input);
            prop_assert_eq!(frame::decode::<Input<'_>>(body(&again)).unwrap(), input);
        }
        if let Ok(request) = frame::decode::<EgressRequest<'_>>(&bytes) {
            let again = framed(&request);
            prop_assert_eq!(frame::decode::<EgressRequest<'_>>(body(&again)).unwrap(), request);
        }
        if let Ok(hello) = frame::decode::<Hello>(&bytes) {
            prop_assert_eq!(frame::decode::<Hello>(body(&framed(&hello))).unwrap(), hello);
        }
    }

    #[test]
    fn both_sides_report_a_version_mismatch(theirs: u32, link in 1_u32..=2) {
        prop_assume!(theirs != waggle_protocol::VERSION);
        let mut preamble = handshake::preamble(Link::Call);
        preamble[8..12].copy_from_slice(&theirs.to_le_bytes());
        preamble[12..].copy_from_slice(&link.to_le_bytes());
        let (answer, verdict) = handshake::check_preamble(preamble, Link::Call);
        let ours = waggle_protocol::VERSION;
        prop_assert_eq!(verdict, Err(HandshakeRefusal::Version { ours, theirs }));
        // A peer with another version would compare the answer's version with its own. Here the answer's version is
        // replaced instead, which has the same effect.
        let mut answer = answer.unwrap();
        answer[8..12].copy_from_slice(&theirs.to_le_bytes());
        prop_assert_eq!(handshake::read_answer(answer, Link::Call), Err(HandshakeRefusal::Version { ours, theirs }));
    }
}

#[test]
fn both_sides_report_a_wrong_link() {
    let (answer, verdict) = handshake::check_preamble(handshake::preamble(Link::Egress), Link::Call);
    assert_eq!(verdict, Err(HandshakeRefusal::WrongLink { expected: 1, found: 2 }));
    assert_eq!(handshake::read_answer(answer.unwrap(), Link::Egress), Err(HandshakeRefusal::LinkRefused { link: 2 }));
}

#[test]
fn foreign_protocol_gets_no_answer() {
    let (answer, verdict) = handshake::check_preamble(*b"GET / HTTP/1.1\r\n", Link::Call);
    assert_eq!(answer, None);
    assert_eq!(verdict, Err(HandshakeRefusal::NotWaggle { found: *b"GET / HT" }));
}

#[test]
fn rejects_trailing_bytes() {
    let mut encoded = framed(&Request::PowerOff);
    encoded.push(0);
    let fault = frame::decode::<Request>(&encoded[frame::PREFIX_BYTES..]).unwrap_err();
    assert!(matches!(fault, FrameFault::Trailing { rest: 1, .. }), "{fault}");

    let mut encoded = BootConfig::default().encode().unwrap();
    encoded.push(0);
    let fault = BootConfig::decode(&encoded).unwrap_err();
    assert!(matches!(fault, FrameFault::Trailing { rest: 1, .. }), "{fault}");
}

#[test]
fn rejects_frames_above_the_limit() {
    let above = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    let fault = frame::body_bytes(above, FRAME_BYTES_MAX).unwrap_err();
    assert!(matches!(fault, FrameFault::TooLong { bytes, .. } if bytes == FRAME_BYTES_MAX + 1), "{fault}");
    assert!(matches!(frame::body_bytes([0xff; 4], FRAME_BYTES_MAX), Err(FrameFault::TooLong { .. })));

    let mut buffer = b"before".to_vec();
    let fault = Fault { kind: FaultKind::Other, message: "x".repeat(FRAME_BYTES_MAX) };
    assert!(matches!(frame::encode(&Reply::Fault(fault), &mut buffer), Err(FrameFault::TooLong { .. })));
    assert_eq!(buffer, b"before");
}

#[test]
fn full_chunk_fits_into_a_frame() {
    let chunk = vec![0xa5; CHUNK_BYTES_MAX];
    let encoded = framed(&Reply::Stdout(&chunk));
    assert_eq!(frame::decode::<Reply<'_>>(body(&encoded)).unwrap(), Reply::Stdout(&chunk));
}

#[test]
fn longest_dns_query_fits_into_an_egress_frame() {
    let message = vec![0xa5; DNS_QUERY_BYTES_MAX];
    assert!(body(&framed(&EgressRequest::Resolve { message: &message })).len() <= EGRESS_FRAME_BYTES_MAX);
}
