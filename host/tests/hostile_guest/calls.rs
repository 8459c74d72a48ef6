// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that reply to a call wrongly, or not at all.

use std::time::Duration;

use waggle::domain::{
    call_fault::{CallFault, RefusalKind},
    file::{FileRange, ListOptions, Listing, Writing},
};
use waggle_protocol::{Fault, FaultKind, Reply, reply::Entry};
use waggle_shared::causes::chain;

use crate::{
    bounded, command,
    guest::{Guest, TIMEOUTS, framed, greeted},
    path,
};

/// Reads at most 1000 bytes from a guest that sends `bytes` on the stream of the call and then stalls. Returns the
/// error.
async fn read_answered(bytes: &[u8]) -> String {
    let (host, mut guest) = greeted(TIMEOUTS).await;
    let answering = async {
        let stream = guest.next_call().await;
        // An empty frame would break the rules of the link.
        if !bytes.is_empty() {
            guest.send(stream, bytes).await;
        }
        guest.stall().await
    };
    tokio::select! {
        read = host.read_file(path(), None, 1000) => chain(&read.unwrap_err()),
        never = answering => never,
    }
}

/// Runs a command with this guest, and cancels the command after the given time. Returns the error.
async fn exec(host: &waggle::agent::AgentClient, cancel_after: Duration, stdin: Vec<u8>, guest: impl Future) -> String {
    let cancelled = Box::pin(tokio::time::sleep(cancel_after));
    let command = waggle::domain::command::Command { stdin, ..command() };
    let mut ignore = |_, _: &[u8]| {};
    tokio::select! {
        ended = host.exec(command, cancelled, &mut ignore) => chain(&ended.unwrap_err()),
        _ = guest => panic!("this guest must not end"),
    }
}

#[tokio::test]
async fn half_a_frame_times_out() {
    bounded(async {
        let half = &framed(&Reply::Data(&[7; 500]))[..200];
        assert_eq!(
            read_answered(half).await,
            "the guest agent broke the protocol: the call's last reply did not arrive within 1 s"
        );
        assert_eq!(
            read_answered(&[]).await,
            "the guest agent broke the protocol: the call's last reply did not arrive within 1 s"
        );
    })
    .await;
}

#[tokio::test]
async fn rejects_a_4_gib_reply_by_its_length() {
    bounded(async {
        let fault = read_answered(&[0xff; 4]).await;
        assert!(fault.ends_with("a frame of 4294967295 bytes is above the limit of 131072"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn rejects_more_bytes_than_requested() {
    bounded(async {
        let fault = read_answered(&framed(&Reply::Data(&[7; 1001]))).await;
        assert!(fault.ends_with("received more than 1000 bytes of a file"), "{fault}");

        let (host, mut guest) = greeted(TIMEOUTS).await;
        let range = Some(FileRange { offset: 5, limit: 10 });
        let answering = async {
            let stream = guest.next_call().await;
            guest.reply(stream, &Reply::Data(&[7; 11])).await;
            guest.stall().await
        };
        tokio::select! {
            read = host.read_file(path(), range, 1000) => {
                assert!(chain(&read.unwrap_err()).ends_with("received more than 10 bytes of a file"));
            }
            never = answering => never,
        }
    })
    .await;
}

/// Lists the entries after `m`, at most 1000, of a guest that answers with `replies`.
async fn listing_answered(replies: impl Iterator<Item = Reply<'static>>) -> Result<Listing, String> {
    let (host, mut guest) = greeted(TIMEOUTS).await;
    let options = ListOptions { after: "m".to_owned(), entries_max: 1000, recursive: true };
    let answering = async {
        let stream = guest.next_call().await;
        guest.send_each(stream, replies.map(|reply| framed(&reply))).await;
        guest.stall().await
    };
    tokio::select! {
        listed = host.list_files(path(), &options) => listed.map_err(|fault| chain(&fault)),
        never = answering => never,
    }
}

/// Entries with these names.
fn entries<N: AsRef<[u8]>>(names: impl IntoIterator<Item = N>) -> Reply<'static> {
    let entry = |name: N| Entry { name: name.as_ref().to_vec(), mode: 0, size: u64::MAX, modified_unix_s: i64::MIN };
    Reply::Entries(names.into_iter().map(entry).collect())
}

#[tokio::test]
async fn rejects_a_listing_above_the_limits() {
    bounded(async {
        let long = |number: usize| format!("n{number:0>4000}");
        let short = (0..).map(|batch| entries((0..100).map(|at| format!("n{:0>9}", batch * 100 + at))));
        let long = (0..).map(|batch| entries((0..10).map(|at| long(batch * 10 + at))));
        let names_above = std::iter::once(entries(["n".repeat(4097)]));
        let fault = listing_answered(short).await.unwrap_err();
        assert!(fault.ends_with("received more than 1000 entries of a folder"), "{fault}");
        let fault = listing_answered(long).await.unwrap_err();
        assert!(fault.ends_with("received more than 524288 bytes of names"), "{fault}");
        let fault = listing_answered(names_above).await.unwrap_err();
        assert!(fault.ends_with("received more than 4096 bytes of a name"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn rejects_an_impossible_number_of_entries() {
    bounded(async {
        for (total, expected) in [
            (u64::MAX, "received more than 9007199254740992 entries in total"),
            (1, "received more entries of a folder than the agent counted"),
        ] {
            let end = Reply::ListEnd { total, total_is_minimum: false, too_deep: false, next: None };
            let fault = listing_answered([entries(["n", "o"]), end].into_iter()).await.unwrap_err();
            assert!(fault.ends_with(expected), "{fault}");
        }
    })
    .await;
}

#[tokio::test]
async fn rejects_a_listing_that_does_not_ascend() {
    bounded(async {
        let end = |next: Option<&[u8]>| {
            let next = next.map(<[u8]>::to_vec);
            Reply::ListEnd { total: 3, total_is_minimum: false, too_deep: false, next }
        };
        let answered = |replies: Vec<Reply<'static>>| listing_answered(replies.into_iter());
        for replies in [
            vec![entries(["n", "n"])],
            vec![entries(["o"]), entries(["n"])],
            vec![entries(["a"])],
            vec![entries(["m"])],
            vec![entries([""])],
            vec![entries(["o", "p"]), end(Some(b"o"))],
            vec![end(Some(b"m"))],
            vec![end(Some(b""))],
        ] {
            let fault = answered(replies.clone()).await.unwrap_err();
            assert!(fault.ends_with("received names of a folder in the wrong order"), "{replies:?}: {fault}");
        }
        let fault = answered(vec![end(Some(&[b'n'; 4097]))]).await.unwrap_err();
        assert!(fault.ends_with("received more than 4096 bytes of a name"), "{fault}");
        // Entries may vanish before they are sent.
        let listing = answered(vec![end(Some(b"n\xff"))]).await.unwrap();
        assert_eq!((listing.entries.len(), listing.total, listing.next.as_deref()), (0, 3, Some("n\\xFF")));
        let listing = answered(vec![entries(["n", "o"]), end(Some(b"p"))]).await.unwrap();
        assert_eq!((listing.entries.len(), listing.next.as_deref()), (2, Some("p")));
    })
    .await;
}

#[tokio::test]
async fn rejects_a_reply_of_another_call() {
    bounded(async {
        for (reply, kind) in
            [(Reply::Stdout(b"x"), "stdout"), (Reply::Done, "done"), (Reply::Entries(vec![]), "entries")]
        {
            let fault = read_answered(&framed(&reply)).await;
            assert!(fault.ends_with(&format!("received an unexpected reply of the kind {kind}")), "{fault}");
        }
    })
    .await;
}

#[tokio::test]
async fn endless_command_times_out_after_its_deadline() {
    bounded(async {
        let (host, guest) = greeted(TIMEOUTS).await;
        let fault = exec(&host, Duration::MAX, Vec::new(), async { guest.stall().await }).await;
        assert_eq!(fault, "the guest agent broke the protocol: the call's last reply did not arrive within 1 s");
    })
    .await;
}

#[tokio::test]
async fn unconfirmed_cancel_times_out() {
    bounded(async {
        let (host, mut guest) = greeted(TIMEOUTS).await;
        let reads = async {
            while guest.frame().await.is_some() {}
            guest.stall().await
        };
        let fault = exec(&host, Duration::from_millis(100), Vec::new(), reads).await;
        assert_eq!(fault, "the guest agent broke the protocol: the call's last reply did not arrive within 0.5 s");
    })
    .await;
}

#[tokio::test]
async fn unread_cancel_times_out() {
    bounded(async {
        let (host, guest) = greeted(TIMEOUTS).await;
        let fault = exec(&host, Duration::from_millis(100), vec![0; 1_000_000], guest.stall()).await;
        assert_eq!(fault, "the guest agent broke the protocol: the call's last reply did not arrive within 0.5 s");
    })
    .await;
}

#[tokio::test]
async fn fault_text_is_escaped_and_capped() {
    bounded(async {
        let (host, mut guest) = greeted(TIMEOUTS).await;
        let message = format!("\x1b[2J\u{202e}{}", "x".repeat(100_000));
        let answering = async {
            let stream = guest.next_call().await;
            for part in framed(&Reply::Fault(Fault { kind: FaultKind::Denied, message })).chunks(60_000) {
                guest.send(stream, part).await;
            }
            guest.stall().await
        };
        let fault = tokio::select! {
            written = host.write_file(path(), b"content", Writing::default()) => written.unwrap_err(),
            never = answering => never,
        };
        let CallFault::Refused { kind: RefusalKind::Denied, message } = fault else { panic!("{fault:?}") };
        assert!(message.starts_with("\\u{1b}[2J\\u{202e}xxx"), "{message}");
        assert_eq!(message.len(), 4096);
    })
    .await;
}

#[tokio::test]
async fn unresponsive_guest_is_detected_without_a_call() {
    bounded(async {
        let timeouts = waggle::agent::Timeouts { clock_interval: Duration::from_millis(100), ..TIMEOUTS };
        let (host, guest) = greeted(timeouts).await;
        let Guest { socket } = guest;
        assert_eq!(host.closed().await, "the agent no longer responds");
        drop(socket);
    })
    .await;
}
