// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that send without end, never read, or break the rules of the link.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::io::{AsyncWriteExt as _, split};
use waggle::{
    agent::Timeouts,
    domain::{command::Command, file::Writing},
};
use waggle_protocol::{
    CALLS_MAX, Reply,
    reply::{Cause, Exited, Status},
};
use waggle_shared::causes::chain;

use crate::{
    bounded, command,
    guest::{
        CLOSE, CREDIT, CREDIT_BYTES, DATA, END, OPEN, TIMEOUTS, framed, greeted, greeted_narrowly, header, in_stream,
    },
    path,
};

/// Returns the reason for the end of a link whose guest writes these bytes repeatedly and reads everything.
async fn ended_by(frames: &[u8]) -> String {
    let (host, guest) = greeted(TIMEOUTS).await;
    let (mut reading, mut writing) = split(guest.socket);
    let reads = async {
        // A guest that did not read would block the host and hide the flood.
        tokio::io::copy(&mut reading, &mut tokio::io::sink()).await.ok();
        std::future::pending().await
    };
    let floods = async {
        while writing.write_all(frames).await.is_ok() && writing.flush().await.is_ok() {}
        std::future::pending().await
    };
    tokio::select! {
        reason = host.closed() => reason,
        never = reads => never,
        never = floods => never,
    }
}

#[tokio::test]
async fn ten_thousand_streams_end_the_link_at_the_first() {
    bounded(async {
        let streams: Vec<u8> = (0..10_000).flat_map(|stream| header(OPEN, 0, stream)).collect();
        assert_eq!(ended_by(&streams).await, "peer opened a stream; only this side may open streams on this link");
    })
    .await;
}

#[tokio::test]
async fn invalid_headers_end_the_link_at_the_first() {
    bounded(async {
        for invalid in [
            [0xff; 8],
            header(DATA, 65_537, 0),
            header(DATA, 0xff_ff_ff, 0),
            header(DATA, 0, 0),
            header(CREDIT, 0, 0),
            header(CREDIT, 1, 0),
            header(END, 1, 0),
            header(CLOSE, 1, 0),
            header(OPEN, 1, 0),
            header(6, 0, 0),
            *b"SSH-2.0-",
        ] {
            let reason = ended_by(&invalid).await;
            assert_eq!(reason, format!("peer sent an invalid frame header: {invalid:02x?}"));
        }
    })
    .await;
}

#[tokio::test]
async fn frames_without_a_stream_end_the_link_at_the_first() {
    bounded(async {
        for stream in [0, 63, 64, u32::MAX] {
            for frame in [header(END, 0, stream), header(CLOSE, 0, stream), header(CREDIT, 5000, stream)] {
                let reason = ended_by(&frame.repeat(1000)).await;
                assert_eq!(reason, format!("peer sent a frame on stream {stream}, which is not open"));
            }
        }
    })
    .await;
}

/// Returns the reason for the end of a link whose guest writes these bytes on the stream of a call. The host does not
/// read the stream, and grants no credit.
async fn call_ended_by(bytes: impl FnOnce(u32) -> Vec<u8>) -> String {
    let (host, mut guest) = greeted(TIMEOUTS).await;
    let mut ignore = |_, _: &[u8]| {};
    let mut call = pin!(host.exec(command(), Box::pin(std::future::pending()), &mut ignore));
    let stream = tokio::select! {
        ended = &mut call => panic!("{ended:?}"),
        stream = guest.next_call() => stream,
    };
    // The call is no longer polled.
    let writes = async {
        guest.write(&bytes(stream)).await;
        guest.stall().await
    };
    tokio::select! {
        reason = host.closed() => reason,
        never = writes => never,
    }
}

#[tokio::test]
async fn breaking_the_rules_of_a_stream_ends_the_link() {
    bounded(async {
        let reason = call_ended_by(|stream| header(END, 0, stream).repeat(2)).await;
        assert_eq!(reason, "peer ended stream 0 twice");
        let reason = call_ended_by(|stream| header(CLOSE, 0, stream).repeat(2)).await;
        assert_eq!(reason, "peer sent a frame on stream 0, which is not open");
        let reason =
            call_ended_by(|stream| [header(CLOSE, 0, stream).to_vec(), in_stream(stream, b"x")].concat()).await;
        assert_eq!(reason, "peer sent a frame on stream 0, which is not open");
        let reason = call_ended_by(|stream| [header(END, 0, stream).to_vec(), in_stream(stream, b"x")].concat()).await;
        assert_eq!(reason, "peer sent 1 bytes of data on a stream with 0 bytes of credit");
        let reason = call_ended_by(|stream| header(CREDIT, 200_000, stream).repeat(2)).await;
        assert!(reason.starts_with("peer granted 200000 bytes on top of "), "{reason}");
    })
    .await;
}

#[tokio::test]
async fn data_beyond_the_credit_ends_the_link() {
    bounded(async {
        let reason = call_ended_by(|stream| in_stream(stream, &[0; 65_536]).repeat(64)).await;
        assert_eq!(reason, "peer sent 65536 bytes of data on a stream with 0 bytes of credit");
        let reason = call_ended_by(|stream| in_stream(stream, &[0]).repeat(CREDIT_BYTES + 1)).await;
        assert_eq!(reason, "peer sent 1 bytes of data on a stream with 0 bytes of credit");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guest_that_sends_and_never_reads_times_out() {
    bounded(async {
        let timeouts = Timeouts { clock_interval: Duration::from_millis(100), ..TIMEOUTS };
        let (host, mut guest) = greeted_narrowly(timeouts).await;
        let sends = async {
            // The host has opened a stream by then.
            tokio::time::sleep(Duration::from_millis(150)).await;
            guest.write(&in_stream(0, &[0]).repeat(CREDIT_BYTES)).await;
            guest.stall().await
        };
        tokio::select! {
            reason = host.closed() => assert_eq!(reason, "the agent no longer responds"),
            never = sends => never,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_output_stops_at_the_deadline() {
    for piece in [65_000, 1, 0] {
        bounded(async {
            let (host, mut guest) = greeted(TIMEOUTS).await;
            let floods = tokio::spawn(async move {
                let stream = guest.next_call().await;
                // Fill one frame with replies.
                let reply = framed(&Reply::Stdout(&vec![b'x'; piece]));
                guest.flood_stream(stream, &reply.repeat((65_536 / reply.len()).max(1))).await;
            });
            let (started, mut bytes) = (Instant::now(), 0);
            let mut count = |_, output: &[u8]| bytes += output.len();
            let ended = host.exec(command(), Box::pin(std::future::pending()), &mut count).await;
            let fault = chain(&ended.unwrap_err());
            assert!(fault.ends_with("the call's last reply did not arrive within 1 s"), "{fault}");
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            assert!(piece == 0 || bytes > 1000, "only {bytes} bytes arrived");
            floods.abort();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_in_single_bytes_uses_little_memory() {
    bounded(async {
        let (host, mut guest) = greeted(TIMEOUTS).await;
        let floods = tokio::spawn(async move {
            let stream = guest.next_call().await;
            // A long reply with each byte in a separate frame. The last bytes of the reply never arrive.
            let mut frames = in_stream(stream, &131_000_u32.to_le_bytes());
            frames.extend(in_stream(stream, &[0]));
            let single = in_stream(stream, &[1]);
            guest.write(&frames).await;
            let many = single.repeat(1000);
            for _ in 0..130 {
                guest.write(&many).await;
            }
            guest.stall().await
        });
        let ended = host.exec(command(), Box::pin(std::future::pending()), &mut |_, _| {}).await;
        let fault = chain(&ended.unwrap_err());
        assert!(fault.ends_with("the call's last reply did not arrive within 1 s"), "{fault}");
        floods.abort();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maximum_calls_to_a_guest_that_stops_reading_use_little_memory() {
    let content = vec![7; 10 * 1024 * 1024];
    bounded(async {
        let (host, mut guest) = greeted(TIMEOUTS).await;
        let stalls = tokio::spawn(async move {
            let mut streams = Vec::new();
            for _ in 0..CALLS_MAX {
                streams.push(guest.next_call().await);
            }
            // The guest reads nothing more, and sends one long incomplete reply on each stream.
            let begun = 131_072_u32.to_le_bytes();
            for stream in streams {
                let mut frames = in_stream(stream, &begun);
                frames.extend(in_stream(stream, &[0; 65_536]));
                frames.extend(in_stream(stream, &[0; 65_000]));
                guest.write(&frames).await;
            }
            guest.stall().await
        });
        let calls = (0..CALLS_MAX).map(|_| host.write_file(path(), &content, Writing::default()));
        for written in join_all(calls).await {
            let fault = chain(&written.unwrap_err());
            assert!(fault.starts_with("the guest agent broke the protocol: "), "{fault}");
        }
        stalls.abort();
    })
    .await;
}

#[tokio::test]
async fn flooding_call_does_not_starve_others() {
    bounded(async {
        let (host, mut guest) = greeted(TIMEOUTS).await;
        let answering = tokio::spawn(async move {
            let flooded = guest.next_call().await;
            let reply = framed(&Reply::Stdout(b"x"));
            let replies = in_stream(flooded, &reply.repeat(1000));
            let exited = Exited::new(Status::Code(0), Cause::Itself, 1);
            let mut credit = CREDIT_BYTES - replies.len();
            guest.write(&replies).await;
            while let Some(frame) = guest.frame().await {
                if frame.kind == OPEN {
                    guest.reply(frame.stream, &Reply::Exited(exited.clone())).await;
                    guest.write(&header(CLOSE, 0, frame.stream)).await;
                } else if frame.kind == CREDIT && frame.stream == flooded {
                    credit += frame.value;
                }
                while credit >= replies.len() {
                    credit -= replies.len();
                    guest.write(&replies).await;
                }
            }
        });
        let long = Command { timeout: Duration::from_secs(60), ..command() };
        let bytes = AtomicUsize::new(0);
        let mut count = |_, output: &[u8]| _ = bytes.fetch_add(output.len(), Relaxed);
        let flooded = host.exec(long, Box::pin(std::future::pending()), &mut count);
        let others = async {
            let mut longest = Duration::ZERO;
            while bytes.load(Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            while bytes.load(Relaxed) < 300_000 {
                let started = Instant::now();
                let ended = host.exec(command(), Box::pin(std::future::pending()), &mut |_, _| {}).await;
                assert_eq!(ended.unwrap().exit_code, 0);
                longest = longest.max(started.elapsed());
            }
            longest
        };
        let longest = tokio::select! {
            ended = flooded => panic!("{ended:?}"),
            longest = others => longest,
        };
        assert!(longest < Duration::from_millis(500), "a call beside the flood took {longest:?}");
        answering.abort();
    })
    .await;
}
