// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Decodes arbitrary bytes as a preamble and as every message. The bytes must decode to a message that survives a round
//! trip, or fail with an error. Decoding must neither panic nor allocate more than the size of a frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waggle_protocol::{
    FRAME_BYTES_MAX, Hello, Input, Link, Ready, Reply, Request, Welcome,
    boot::BootConfig,
    egress::{EgressRequest, FlowReply},
    frame::{self, PREFIX_BYTES},
    handshake,
};

macro_rules! survives {
    ($message:ty, $body:expr) => {
        if let Ok(message) = frame::decode::<$message>($body) {
            let mut encoded = Vec::new();
            // A hostile peer's encoding may be shorter than ours, so our encoding of the message may exceed a frame.
            if frame::encode(&message, &mut encoded).is_ok() {
                let again = frame::decode::<$message>(&encoded[PREFIX_BYTES..]);
                assert_eq!(again.expect("failed to decode an encoded message"), message);
            }
        }
    };
}

fuzz_target!(|bytes: &[u8]| {
    if let Some((preamble, _)) = bytes.split_first_chunk() {
        let _verdict = handshake::check_preamble(*preamble, Link::Call);
        let _verdict = handshake::read_answer(*preamble, Link::Egress);
    }
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return };
    if let Ok(length) = frame::body_bytes(*prefix, FRAME_BYTES_MAX) {
        assert!(length <= FRAME_BYTES_MAX);
    }
    // The prefix is ignored, so that the fuzzer need not guess a length.
    survives!(Request, rest);
    survives!(Input<'_>, rest);
    survives!(Reply<'_>, rest);
    survives!(Hello, rest);
    survives!(Welcome, rest);
    survives!(Ready, rest);
    survives!(EgressRequest<'_>, rest);
    survives!(FlowReply<'_>, rest);
    let _boot = BootConfig::decode(rest);
});
