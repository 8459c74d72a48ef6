// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Generated messages of both directions. A message that fits into a frame survives a round trip. With a trailing byte
//! the message is rejected. With one byte changed the result is an error or another message, without a panic. Names are
//! read back from their texts.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use waggle_protocol::{
    FRAME_BYTES_MAX, Hello, Input, Ready, Reply, Request, Welcome,
    egress::{EgressRequest, FlowReply},
    frame::{self, FrameFault, PREFIX_BYTES},
    name,
};

macro_rules! passes {
    ($message:ty, $input:expr) => {{
        let Ok(message) = <$message>::arbitrary(&mut $input) else { return };
        let mut bytes = Vec::new();
        if frame::encode(&message, &mut bytes).is_err() {
            assert!(bytes.is_empty(), "a failed encoding changed the buffer");
            return;
        }
        let (prefix, body) = bytes.split_first_chunk::<PREFIX_BYTES>().expect("frame without a length prefix");
        assert_eq!(frame::body_bytes(*prefix, FRAME_BYTES_MAX).expect("length above the limit"), body.len());
        assert!(body.len() <= FRAME_BYTES_MAX);
        assert_eq!(frame::decode::<$message>(body).expect("failed to decode an encoded message"), message);
        let longer = [body, &[0]].concat();
        let fault = frame::decode::<$message>(&longer).expect_err("a trailing byte was accepted");
        assert!(matches!(fault, FrameFault::Trailing { rest: 1, .. }), "{fault}");
        let mut changed = body.to_vec();
        if let (Ok(at), Ok(byte)) = ($input.choose_index(changed.len().max(1)), u8::arbitrary(&mut $input)) {
            changed.get_mut(at).map(|old| *old = byte);
            drop(frame::decode::<$message>(&changed).map_err(|fault| fault.to_string()));
        }
    }};
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let mut input = Unstructured::new(rest);
    match kind % 9 {
        0 => passes!(Request, input),
        1 => passes!(Input<'_>, input),
        2 => passes!(Reply<'_>, input),
        3 => passes!(Hello, input),
        4 => passes!(Welcome, input),
        5 => passes!(EgressRequest<'_>, input),
        6 => passes!(FlowReply<'_>, input),
        7 => passes!(Ready, input),
        _ => assert_eq!(*name::from_text(&name::to_text(rest)), *rest),
    }
});
