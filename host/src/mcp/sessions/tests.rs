// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Owners, eviction and request ids of sessions.

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde_json::json;
use tokio::sync::mpsc::{Sender, channel};

use super::*;

fn principal(name: &str) -> Principal {
    name.parse().unwrap()
}

fn sessions(all: usize) -> Sessions {
    shared_sessions(SharedLimit { all, per_caller: None })
}

fn shared_sessions(limit: SharedLimit) -> Sessions {
    let mut inner = LocalSessionManager::default();
    inner.session_config.keep_alive = None;
    Sessions::new(inner, limit, Callers::default())
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
) -> Result<(Answer, LogWriter), SessionRefusal> {
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

#[tokio::test]
async fn session_is_unusable_outside_of_a_request_until_its_service_ends() {
    let sessions = sessions(2);
    let opened = sessions.create_session();
    let (id, transport) = on_behalf(principal("ada"), RequestMemory::default(), opened).await.unwrap().unwrap();
    assert!(!sessions.has_session(&id).await.unwrap());
    assert!(matches!(sessions.create_session().await, Err(SessionFault::NoRequest)));
    assert!(matches!(sessions.create_stream(&id, call(1, 1)).await.err(), Some(SessionFault::NoRequest)));
    sessions.close_session(&id).await.unwrap();
    assert!(sessions.table().contains_key(&id));
    drop(transport);
    sessions.close_session(&id).await.unwrap();
    assert!(!sessions.table().contains_key(&id));
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

#[tokio::test(start_paused = true)]
async fn caller_with_its_share_of_sessions_evicts_only_its_own() {
    let sessions = shared_sessions(SharedLimit { all: 4, per_caller: Some(2) });
    let other = create(&sessions, "bob").await.unwrap();
    tokio::time::advance(EVICTABLE_AFTER).await;
    let own = [create(&sessions, "ada").await.unwrap(), create(&sessions, "ada").await.unwrap()];
    assert_eq!(create(&sessions, "ada").await, Err(SessionRefusal::Share { share: 2 }));
    create(&sessions, "bob").await.unwrap();
    tokio::time::advance(EVICTABLE_AFTER).await;
    let open = unending(&sessions, &own[0]);
    create(&sessions, "ada").await.unwrap();
    let exist = [&other, &own[0], &own[1]].map(|id| sessions.table().contains_key(id));
    assert_eq!(exist, [true, true, false]);
    drop(open);
}

fn report(number: i64) -> ServerSseMessage {
    let params = json!({"progressToken": 10, "progress": number});
    let report = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params});
    ServerSseMessage::from_message(serde_json::from_value(report).unwrap())
}

fn ids(events: &[ServerSseMessage]) -> Vec<&str> {
    events.iter().map(|event| event.event_id.as_deref().unwrap()).collect()
}

/// Starts to keep the answer of a registered request; its events come from the returned sender.
fn start_keeping(sessions: &Sessions, id: &SessionId, log: LogWriter) -> Sender<ServerSseMessage> {
    let (sender, mut receiver) = channel(8);
    let events = stream::poll_fn(move |context| receiver.poll_recv(context));
    let kept = KeptAnswer { table: Arc::clone(&sessions.table), session: Arc::clone(id), log };
    sessions.spawn(kept.keep(events, true));
    sender
}

#[tokio::test(start_paused = true)]
async fn answer_that_ends_while_its_client_is_away_can_be_resumed() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
    let events = start_keeping(&sessions, &id, log);
    let mut first = Box::pin(sessions.read(&id, answer, 0));
    events.try_send(report(1)).unwrap();
    assert_eq!(first.next().await.unwrap().event_id.unwrap(), "0-0");
    drop(first);
    events.try_send(report(2)).unwrap();
    events.try_send(report(3)).unwrap();
    drop(events);
    tokio::time::sleep(answers::UNREAD_RETENTION / 2).await;
    // The ids of a request whose answer can still be read are in use.
    assert_eq!(
        register(&sessions, &id, &RequestMemory::default(), call(1, 11)).await.err(),
        Some(SessionRefusal::Repeated)
    );
    let resume = async |event: &str| sessions.resume(&id, event.to_owned()).await;
    assert_eq!(ids(&resume("0-0").await.unwrap().collect::<Vec<_>>().await), ["0-2"], "the report has been dropped");
    // Its ids can be used again, and it can be read once more, in case that the connection was already lost.
    register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
    assert_eq!(ids(&resume("0-0").await.unwrap().collect::<Vec<_>>().await), ["0-2"]);
    for unknown in ["0-3", "0-18446744073709551614", "9-0", "0/0", "x"] {
        assert_eq!(resume(unknown).await.unwrap().count().await, 0, "{unknown}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_few_and_small_delivered_answers_stay() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let budget = crate::budget::Budget::new(10 * 1024 * 1024, 0);
    let kept = |number: u64| sessions.table()[&id].answers.find(&format!("{number}-0")).is_some();
    for number in 0..=u32::try_from(answers::READ_MAX).unwrap() {
        let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(number, number)).await.unwrap();
        let events = start_keeping(&sessions, &id, log);
        events.try_send(report(1)).unwrap();
        drop(events);
        assert_eq!(sessions.read(&id, answer, 0).count().await, 1);
    }
    assert_eq!((kept(0), kept(1)), (false, true));
    let memory = RequestMemory::default();
    memory.hold_result(budget.reserve(&principal("ada"), 400_000).await);
    let (answer, log) = register(&sessions, &id, &memory, call(100, 100)).await.unwrap();
    let events = start_keeping(&sessions, &id, log);
    events.try_send(report(1)).unwrap();
    drop(events);
    assert_eq!(sessions.read(&id, answer, 0).count().await, 1);
    assert!(!kept(u64::try_from(answers::READ_MAX).unwrap() + 1));
}

#[tokio::test(start_paused = true)]
async fn removing_a_delivered_answer_leaves_the_ids_of_a_later_request_alone() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 1)).await.unwrap();
    let events = start_keeping(&sessions, &id, log);
    events.try_send(report(1)).unwrap();
    drop(events);
    assert_eq!(sessions.read(&id, answer.clone(), 0).count().await, 1);
    let (_running, _log) = register(&sessions, &id, &RequestMemory::default(), call(1, 1)).await.unwrap();
    let repeated = async || register(&sessions, &id, &RequestMemory::default(), call(1, 2)).await.err();
    // The answer is read again, and is removed when its time is over.
    assert_eq!(sessions.read(&id, answer, 0).count().await, 1);
    assert_eq!(repeated().await, Some(SessionRefusal::Repeated));
    tokio::time::sleep(answers::UNREAD_RETENTION * 2).await;
    assert!(sessions.table()[&id].answers.find("0-0").is_none());
    assert_eq!(repeated().await, Some(SessionRefusal::Repeated));
}

#[tokio::test]
async fn request_whose_client_leaves_at_once_keeps_no_memory_after_its_end() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let memory = RequestMemory::default();
    let request = async {
        let stream = sessions.create_stream(&id, call(1, 10));
        // The client leaves before the session has taken the request.
        let mut stream = std::pin::pin!(stream);
        assert!(futures_util::poll!(&mut stream).is_pending());
    };
    on_behalf(principal("ada"), memory.clone(), request).await.unwrap();
    sessions.close(&id).await.unwrap();
    let weak = memory.downgrade();
    drop(memory);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn unread_answer_is_dropped_with_its_memory_when_its_time_is_over() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let memory = RequestMemory::default();
    let (_, log) = register(&sessions, &id, &memory, call(1, 10)).await.unwrap();
    drop(start_keeping(&sessions, &id, log));
    let weak = memory.downgrade();
    drop(memory);
    tokio::time::sleep(answers::UNREAD_RETENTION - Duration::from_secs(1)).await;
    assert!(weak.upgrade().is_some());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(weak.upgrade().is_none());
    register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unread_answers_beyond_the_limit_replace_the_oldest() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    for number in 0..=u32::try_from(answers::UNREAD_MAX).unwrap() {
        let (_, log) = register(&sessions, &id, &RequestMemory::default(), call(number, number)).await.unwrap();
        drop(start_keeping(&sessions, &id, log));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(sessions.table()[&id].answers.find("0-0").is_none());
    register(&sessions, &id, &RequestMemory::default(), call(0, 0)).await.unwrap();
}

#[tokio::test]
async fn two_responses_can_read_one_answer() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
    let events = start_keeping(&sessions, &id, log);
    events.try_send(report(1)).unwrap();
    let mut first = Box::pin(sessions.read(&id, answer, 0));
    let begun = first.next().await.unwrap();
    let first = first.collect::<Vec<_>>();
    let second = sessions.resume(&id, "0-0".to_owned()).await.unwrap().collect::<Vec<_>>();
    let ended = async {
        events.try_send(report(2)).unwrap();
        drop(events);
    };
    let (first, second, ()) = tokio::join!(first, second, ended);
    assert_eq!(begun.event_id.as_deref(), Some("0-0"));
    assert_eq!((ids(&first), ids(&second)), (vec!["0-1"], vec!["0-1"]));
}

#[tokio::test]
async fn few_responses_read_one_answer_at_a_time_and_another_ends_the_oldest() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
    let events = start_keeping(&sessions, &id, log);
    events.try_send(report(1)).unwrap();
    events.try_send(report(2)).unwrap();
    drop(events);
    let mut reading = vec![Box::pin(sessions.read(&id, answer, 0).left_stream())];
    reading[0].next().await.unwrap();
    let resume = async || Box::pin(sessions.resume(&id, "0-0".to_owned()).await.unwrap().right_stream());
    for _ in 1..answers::RESPONSES_MAX {
        let mut response = resume().await;
        assert!(response.next().await.is_some());
        reading.push(response);
    }
    let mut latest = resume().await;
    assert!(latest.next().now_or_never().is_none(), "it waits until the oldest has gone");
    assert!(reading[0].next().await.is_none());
    reading.remove(0);
    assert_eq!(latest.next().await.unwrap().event_id.as_deref(), Some("0-1"));
    // A response that has been ended has not delivered the answer, so its ids stay in use.
    assert!(sessions.table()[&id].answers.has_unread());
    assert!(latest.next().await.is_none());
    assert!(!sessions.table()[&id].answers.has_unread());
}

#[tokio::test]
async fn only_the_latest_reports_wait_for_their_client() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
    let count = answers::REPORTS_KEPT_MAX as i64 + 10;
    log.copy(stream::iter((0..count).map(report))).await;
    let events = sessions.read(&id, answer, 0).collect::<Vec<_>>().await;
    assert_eq!(events.len(), answers::REPORTS_KEPT_MAX);
    assert_eq!(events.last().unwrap().event_id, Some(format!("0-{}", count - 1)));
}

#[tokio::test]
async fn only_clients_that_understand_it_get_an_event_without_a_message() {
    let sessions = sessions(2);
    let id = create(&sessions, "ada").await.unwrap();
    for (has_priming, count) in [(false, 0), (true, 1)] {
        sessions.table().get_mut(&id).unwrap().has_priming = has_priming;
        let (answer, log) = register(&sessions, &id, &RequestMemory::default(), call(1, 10)).await.unwrap();
        drop(start_keeping(&sessions, &id, log));
        let events = sessions.read(&id, answer, 0).collect::<Vec<_>>().await;
        assert_eq!(events.len(), count);
        assert!(events.iter().all(|event| event.message.is_none() && event.retry.is_some()));
    }
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
    let (answer, _log) = register(&sessions, &id, &memory, call(1, 10)).await.unwrap();
    let budget = crate::budget::Budget::new(1024 * 1024, 0);
    let orphaned = || sessions.table()[&id].orphaned.len();
    memory.hold_result(budget.reserve(&principal("ada"), 1).await);
    sessions.orphan_result(&id, &cancel(2));
    assert_eq!(orphaned(), 0);
    sessions.orphan_result(&id, &cancel(1));
    assert_eq!(orphaned(), 1);
    drop(answer);
    memory.hold_result(budget.reserve(&principal("ada"), 1).await);
    assert_eq!(orphaned(), 2);
}
