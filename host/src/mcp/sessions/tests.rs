// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Owners, eviction and request ids of sessions.

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::*;

fn principal(name: &str) -> Principal {
    name.parse().unwrap()
}

fn sessions(sessions_max: usize) -> Sessions {
    let mut inner = LocalSessionManager::default();
    inner.session_config.keep_alive = None;
    Sessions::new(inner, sessions_max)
}

async fn create(sessions: &Sessions, name: &str) -> Result<SessionId, SessionRefusal> {
    let created = on_behalf(principal(name), RequestMemory::default(), sessions.create_session()).await?;
    Ok(created.unwrap().0)
}

async fn register(
    sessions: &Sessions,
    id: &SessionId,
    memory: &RequestMemory,
    message: ClientJsonRpcMessage,
) -> Result<RegisteredRequest, SessionRefusal> {
    let request = async { sessions.register(id, &message) };
    on_behalf(principal("ada"), memory.clone(), request).await.map(Result::unwrap)
}

fn call(id: u32, token: u32) -> ClientJsonRpcMessage {
    let params = json!({"name": "x", "_meta": {"progressToken": token}});
    let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
    serde_json::from_value(call).unwrap()
}

fn cancel(id: u32) -> ClientJsonRpcMessage {
    let method = "notifications/cancelled";
    serde_json::from_value(json!({"jsonrpc": "2.0", "method": method, "params": {"requestId": id}})).unwrap()
}

fn unending(sessions: &Sessions, id: &SessionId) -> OpenStream<stream::Pending<ServerSseMessage>> {
    sessions.open_stream(id, stream::pending())
}

#[tokio::test]
async fn session_exists_only_for_its_owner() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let exists_for = async |name| {
        on_behalf(principal(name), RequestMemory::default(), sessions.has_session(&id)).await.unwrap().unwrap()
    };
    let close_as = async |name| {
        on_behalf(principal(name), RequestMemory::default(), sessions.close_session(&id)).await.unwrap().unwrap();
    };
    assert_eq!((exists_for("ada").await, exists_for("bob").await), (true, false));
    close_as("bob").await;
    assert!(exists_for("ada").await);
    close_as("ada").await;
    assert!(!exists_for("ada").await);
}

#[tokio::test(start_paused = true)]
async fn full_table_evicts_an_idle_session_or_refuses() {
    let sessions = sessions(2);
    let first = create(&sessions, "ada").await.unwrap();
    let second = create(&sessions, "ada").await.unwrap();
    assert_eq!(create(&sessions, "bob").await, Err(SessionRefusal::Full));
    // The first session has an open answer, so the second one is evicted.
    let open = unending(&sessions, &first);
    tokio::time::advance(EVICTABLE_AFTER).await;
    let third = create(&sessions, "bob").await.unwrap();
    let exist = [&first, &second, &third].map(|id| sessions.table().contains_key(id));
    assert_eq!(exist, [true, false, true]);
    drop(open);
    let fourth = create(&sessions, "bob").await.unwrap();
    let exist = [&first, &third, &fourth].map(|id| sessions.table().contains_key(id));
    assert_eq!(exist, [false, true, true]);
}

#[tokio::test]
async fn request_ids_are_in_use_until_the_answer_is_read_to_its_end() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let register = async |message| register(&sessions, &id, &RequestMemory::default(), message).await;
    let open = |request| {
        let mut stream = sessions.open_stream(&id, stream::empty::<ServerSseMessage>());
        stream.request = Some(request);
        stream
    };
    let first = register(call(1, 10)).await.unwrap();
    for repeated in [call(1, 11), call(2, 10)] {
        assert_eq!(register(repeated).await.map(drop), Err(SessionRefusal::Repeated));
    }
    // Reading the answer to its end releases the ids; abandoning the answer does not.
    assert_eq!(open(first).next().await.map(drop), None);
    drop(open(register(call(1, 10)).await.unwrap()));
    assert_eq!(register(call(1, 12)).await.map(drop), Err(SessionRefusal::Repeated));
    for number in 2..=u32::try_from(request_ids::ABANDONED_MAX).unwrap() {
        assert!(!sessions.table()[&id].ids.exhausted());
        drop(open(register(call(number, number + 10_000)).await.unwrap()));
    }
    assert!(sessions.table()[&id].ids.exhausted());
    let exists = on_behalf(principal("ada"), RequestMemory::default(), sessions.has_session(&id)).await;
    assert!(!exists.unwrap().unwrap());
    // Opening the next session closes the exhausted session.
    create(&sessions, "ada").await.unwrap();
    assert!(!sessions.table().contains_key(&id));
}

#[tokio::test(start_paused = true)]
async fn idle_session_is_closed_when_another_one_opens() {
    let sessions = sessions(9);
    let [first, second] = [create(&sessions, "ada").await.unwrap(), create(&sessions, "ada").await.unwrap()];
    let _open = unending(&sessions, &first);
    tokio::time::advance(EXPIRES_AFTER).await;
    create(&sessions, "bob").await.unwrap();
    assert_eq!([&first, &second].map(|id| sessions.table().contains_key(id)), [true, false]);
}

#[tokio::test]
async fn result_of_a_cancelled_request_is_charged_to_its_session() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let memory = RequestMemory::default();
    let request = register(&sessions, &id, &memory, call(1, 10)).await.unwrap();
    let budget = crate::budget::Budget::new(1024 * 1024);
    let orphaned = || sessions.table()[&id].orphaned.len();
    memory.hold_result(budget.reserve(&principal("ada"), 1).await);
    sessions.orphan_result(&id, &cancel(2));
    assert_eq!(orphaned(), 0);
    sessions.orphan_result(&id, &cancel(1));
    assert_eq!(orphaned(), 1);
    drop(request);
    memory.hold_result(budget.reserve(&principal("ada"), 1).await);
    assert_eq!(orphaned(), 2);
}

#[tokio::test]
async fn abandoned_answer_can_be_resumed_while_its_request_holds_memory() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let memory = RequestMemory::default();
    drop(register(&sessions, &id, &memory, call(1, 10)).await.unwrap());
    let abandoned = || sessions.table()[&id].ids.abandoned().len();
    assert_eq!(abandoned(), 1);
    // The call and its answer end.
    drop(memory);
    assert_eq!(abandoned(), 0);
}
