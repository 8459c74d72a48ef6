// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that answer a call wrongly, or not at all.

use std::time::Duration;

use waggle::{
    causes::chain,
    domain::{
        call_fault::{CallFault, RefusalKind},
        file::{FileRange, Writing},
    },
};
use waggle_protocol::{Fault, FaultKind, Reply, reply::Entry};

use crate::{
    bounded, command,
    guest::{Guest, PATIENCE, framed, greeted},
    path,
};

/// What a read of at most 1000 bytes comes to when the guest answers its stream with these bytes and then stalls.
async fn read_answered(bytes: &[u8]) -> String {
    let (host, mut guest) = greeted(PATIENCE).await;
    let answering = async {
        let stream = guest.call().await;
        guest.send(stream, bytes).await;
        guest.stall().await
    };
    tokio::select! {
        read = host.read_file(path(), None, 1000) => chain(&read.unwrap_err()),
        never = answering => never,
    }
}

/// What a command comes to with this guest, when its caller cancels it after so long.
async fn exec(host: &waggle::agent::AgentClient, cancel_after: Duration, stdin: Vec<u8>, guest: impl Future) -> String {
    let cancelled = Box::pin(tokio::time::sleep(cancel_after));
    let command = waggle::domain::command::Command { stdin, ..command() };
    let mut ignore = |_, _: &[u8]| {};
    tokio::select! {
        ended = host.exec(command, cancelled, &mut ignore) => chain(&ended.unwrap_err()),
        _ = guest => panic!("this guest should go on for ever"),
    }
}

#[tokio::test]
async fn half_a_frame_and_then_nothing_is_given_up() {
    bounded(async {
        let half = &framed(&Reply::Data(&[7; 500]))[..200];
        assert_eq!(read_answered(half).await, "failed to understand the guest agent: no last reply within 1 s");
        assert_eq!(read_answered(&[]).await, "failed to understand the guest agent: no last reply within 1 s");
    })
    .await;
}

#[tokio::test]
async fn a_reply_of_4_gib_is_refused_by_its_length() {
    bounded(async {
        let fault = read_answered(&[0xff; 4]).await;
        assert!(fault.ends_with("a frame of 4294967295 bytes is above the limit of 131072"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn more_than_was_asked_for_is_refused() {
    bounded(async {
        let fault = read_answered(&framed(&Reply::Data(&[7; 1001]))).await;
        assert!(fault.ends_with("more than 1000 bytes of a file came"), "{fault}");

        let (host, mut guest) = greeted(PATIENCE).await;
        let range = Some(FileRange { offset: 5, limit: 10 });
        let answering = async {
            let stream = guest.call().await;
            guest.reply(stream, &Reply::Data(&[7; 11])).await;
            guest.stall().await
        };
        tokio::select! {
            read = host.read_file(path(), range, 1000) => {
                assert!(chain(&read.unwrap_err()).ends_with("more than 10 bytes of a file came"));
            }
            never = answering => never,
        }
    })
    .await;
}

/// What a listing of at most `entries_max` comes to when the guest answers with this, for ever.
async fn listing_answered(entries_max: u32, entries: Vec<Entry>) -> String {
    let (host, mut guest) = greeted(PATIENCE).await;
    let answering = async {
        let stream = guest.call().await;
        guest.flood_stream(stream, &framed(&Reply::Entries(entries))).await;
        guest.stall().await
    };
    tokio::select! {
        listed = host.list_files(path(), entries_max, true) => chain(&listed.unwrap_err()),
        never = answering => never,
    }
}

#[tokio::test]
async fn a_listing_of_more_or_longer_names_than_asked_for_is_refused() {
    bounded(async {
        let entry = |bytes| Entry { name: vec![b'n'; bytes], mode: 0, size: u64::MAX, modified_unix_s: i64::MIN };
        let fault = listing_answered(10, vec![entry(1); 11]).await;
        assert!(fault.ends_with("more than 10 entries of a folder came"), "{fault}");
        let fault = listing_answered(10_000, vec![entry(50_000)]).await;
        assert!(fault.ends_with("more than 3145728 bytes of names came"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn a_reply_of_another_call_is_refused() {
    bounded(async {
        for (reply, kind) in
            [(Reply::Stdout(b"x"), "stdout"), (Reply::Done, "done"), (Reply::Entries(vec![]), "entries")]
        {
            let fault = read_answered(&framed(&reply)).await;
            assert!(fault.ends_with(&format!("a reply of the kind {kind} has no place in this call")), "{fault}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_that_never_ends_is_given_up_after_its_deadline() {
    bounded(async {
        let (host, guest) = greeted(PATIENCE).await;
        let fault = exec(&host, Duration::MAX, Vec::new(), async { guest.stall().await }).await;
        assert_eq!(fault, "failed to understand the guest agent: no last reply within 1 s");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_that_is_never_confirmed_is_given_up() {
    bounded(async {
        let (host, mut guest) = greeted(PATIENCE).await;
        let hears = async {
            while guest.frame().await.is_some() {}
            guest.stall().await
        };
        let fault = exec(&host, Duration::from_millis(100), Vec::new(), hears).await;
        assert_eq!(fault, "failed to understand the guest agent: no last reply within 0.5 s");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_that_the_guest_does_not_even_read_is_given_up_as_soon() {
    bounded(async {
        let (host, guest) = greeted(PATIENCE).await;
        let fault = exec(&host, Duration::from_millis(100), vec![0; 1_000_000], guest.stall()).await;
        assert_eq!(fault, "failed to understand the guest agent: no last reply within 0.5 s");
    })
    .await;
}

#[tokio::test]
async fn control_characters_in_a_fault_are_escaped_and_its_length_is_capped() {
    bounded(async {
        let (host, mut guest) = greeted(PATIENCE).await;
        let message = format!("\x1b[2J\u{202e}{}", "x".repeat(100_000));
        let answering = async {
            let stream = guest.call().await;
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
async fn a_guest_that_answers_nothing_any_more_is_noticed_without_a_call() {
    bounded(async {
        let patience = waggle::agent::Patience { clock_interval: Duration::from_millis(100), ..PATIENCE };
        let (host, guest) = greeted(patience).await;
        let Guest { socket } = guest;
        assert_eq!(host.closed().await, "the agent does not answer any more");
        drop(socket);
    })
    .await;
}
