// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's side of the egress link with a guest that sends arbitrary bytes. The link must end, and the host may dial
//! and resolve only what the policy allows. The clock is paused and advances only when all tasks wait, so timeouts cost
//! no real time.
#![no_main]

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, LazyLock},
    time::Duration,
};

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use waggle_fuzz::{
    domain::egress::{Egress, Network, Refused},
    network::{self, Gateway, Guest},
};
use waggle_link::Past;
use waggle_protocol::{
    Link,
    egress::{Address, EgressRequest, HOST_ADDRESS},
    frame, handshake,
};

/// Timeout of a stuck link; all timeouts under test are shorter.
const STUCK: Duration = Duration::from_secs(24 * 60 * 60);

/// The port of an echo server on loopback: the only destination that the policy allows.
static ECHO: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("failed to bind a port");
    let port = listener.local_addr().expect("failed to get the address").port();
    std::thread::spawn(move || {
        while let Ok((mut server, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = server.read(&mut bytes) {
                    if server.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
});

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    let mut bytes = if *how == 0 { Vec::new() } else { handshake::preamble(Link::Egress).to_vec() };
    match how % 4 {
        0 | 1 => bytes.extend_from_slice(rest),
        2 => bytes.extend(traffic::<EgressRequest<'_>>(rest, true)),
        _ => {
            // Begin flows on the streams that the traffic may use.
            for stream in [0, 1, 2, 3] {
                bytes.extend(connect(stream));
            }
            bytes.extend(traffic::<Vec<u8>>(rest, false));
        }
    }
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime: Runtime = runtime.expect("failed to start the runtime");
    runtime.block_on(async {
        tokio::time::timeout(STUCK, link(&bytes, *how != 0)).await.expect("the link is stuck");
    });
});

fn traffic<'a, M: Arbitrary<'a> + serde::Serialize>(input: &'a [u8], opens: bool) -> Vec<u8> {
    waggle_fuzz::traffic::<M>(&mut Unstructured::new(input), opens).unwrap_or_default()
}

/// Builds the frames that open a stream with a request for the echo server.
fn connect(stream: u8) -> Vec<u8> {
    let mut request = Vec::new();
    let address = Address::V4(HOST_ADDRESS.octets());
    frame::encode(&EgressRequest::Connect { address, port: *ECHO }, &mut request).expect("failed to encode a request");
    let length = u8::try_from(request.len()).expect("request longer than 255 bytes");
    [&[1, 0, 0, 0, stream, 0, 0, 0, 2, length, 0, 0, stream, 0, 0, 0], &request[..]].concat()
}

async fn link(bytes: &[u8], in_records: bool) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let policy = format!("127.0.0.1:{}, localhost", *ECHO).parse().expect("invalid policy");
    let on_refusal = Arc::new(|refused: &Refused| drop(refused.to_string()));
    let network = Network { egress: Egress::new(policy, None), on_refusal };
    let host = Arc::new(Guest::new(network, Arc::new(Gateway::new(None, 512))));
    let sends = async {
        if in_records {
            waggle_fuzz::send_in_records(far, bytes).await;
        } else {
            waggle_fuzz::send(far, bytes).await;
        }
    };
    let ((), ended) = tokio::join!(sends, network::serve(near, Past::None, host));
    drop(ended.to_string());
}
