// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Name lookups when the host's process has no file descriptor left. The limit applies to the whole process, so this
//! test runs in its own process.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::{sync::Arc, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::UnixStream, time::timeout};
use waggle::{
    domain::egress::{Egress, Network},
    network::{Gateway, Guest, serve},
};
use waggle_link::{FrameReader, FrameWriter, Opener, Past, dial};
use waggle_protocol::{
    Link,
    egress::{EgressRequest, FlowReply},
};

/// A query for the IPv4 addresses of `localhost`.
const LOCALHOST: &[u8] = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";

/// Response codes of a DNS answer (RFC 1035, section 4.1.1).
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;

async fn resolve(link: &Opener) -> u8 {
    let mut stream = link.open().await.unwrap();
    FrameWriter::new(&mut stream).send(&EgressRequest::Resolve { message: LOCALHOST }).await.unwrap();
    let mut reader = FrameReader::new(&mut stream);
    match timeout(Duration::from_secs(30), reader.receive::<FlowReply<'_>>()).await.unwrap().unwrap().unwrap() {
        FlowReply::Answer { message } => message[3] & 15,
        other @ (FlowReply::Connected | FlowReply::Refused { .. }) => panic!("expected an answer, got {other:?}"),
    }
}

#[tokio::test]
async fn lookup_without_descriptors_is_a_server_failure() {
    let egress = Egress::new("127.0.0.1".parse().unwrap(), None);
    let guest = Guest::new(Network { egress, on_refusal: Arc::new(|_| {}) }, Arc::new(Gateway::new(None, 512)));
    let (near, far) = UnixStream::pair().unwrap();
    let served = tokio::spawn(serve(near, Past::None, Arc::new(guest)));
    let far = dial(far, Past::None, Link::Egress).await.unwrap();
    let link = Opener::start(far, Link::Egress);

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let exhausted = resolve(&link).await;
    setrlimit(Resource::Nofile, limit).unwrap();

    assert_eq!((exhausted, resolve(&link).await), (SERVER_FAILURE, NO_ERROR));
    served.abort();
}
