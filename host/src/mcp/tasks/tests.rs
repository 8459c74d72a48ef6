// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The limits and the lifetimes of tasks, on a paused clock.

use std::future::pending;

use rmcp::model::{CallToolResult, ContentBlock};
use tokio::sync::oneshot;

use super::*;
use crate::{domain::command::OutputStream, mcp::failure::Failure, service::fault::CallerFault};

const CALL_MAX: Duration = Duration::from_secs(300);

/// The size of each test's running call: large, so that the limits on memory are reached before those on tasks.
const TASK_BYTES: usize = 8 * 1024 * 1024;

fn principal(name: &str) -> Principal {
    name.parse().unwrap()
}

/// Returns a call that ends when an outcome is sent or when the call is cancelled.
fn call(owner: &str) -> (RunningCall, oneshot::Sender<Outcome>, Progress) {
    let (end, ended) = oneshot::channel();
    let cancelled = CancellationToken::new();
    let token = cancelled.clone();
    let outcome = async move {
        tokio::select! {
            Ok(outcome) = ended => outcome,
            () = token.cancelled() => Err(CallerFault::Cancelled { executed: None }.into()),
        }
    };
    let (progress, _) = Progress::new(true);
    let call = RunningCall {
        owner: principal(owner),
        tool: "execute".to_owned(),
        outcome: Box::pin(outcome),
        cancelled,
        progress: progress.clone(),
        bytes_max: TASK_BYTES,
    };
    (call, end, progress)
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

/// Runs all tasks that are ready.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

fn status(tasks: &Tasks, owner: &str, id: &str) -> Option<TaskStatus> {
    tasks.get(&principal(owner), id).ok().map(|task| task.status())
}

#[tokio::test(start_paused = true)]
async fn unread_outcome_is_kept_for_its_ttl_and_a_read_one_for_a_minute() {
    let tasks = Tasks::new(CALL_MAX);
    let (unread, end_unread, _) = call("ada");
    let (read, end_read, _) = call("ada");
    let [unread, read] = [unread, read].map(|call| tasks.start(call).ok().unwrap());
    end_unread.send(Ok(text("unread"))).unwrap();
    end_read.send(Ok(text("read"))).unwrap();
    settle().await;
    let answer = tasks.get(&principal("ada"), &read.task_id).unwrap();
    let TaskPayload::Completed { result } = &answer.payload else { panic!("{answer:?}") };
    assert_eq!(result["content"][0]["text"], "read");
    assert_eq!(answer.task.ttl_ms, Some(60_000));
    sleep(Duration::from_secs(59)).await;
    assert_eq!(status(&tasks, "ada", &read.task_id), Some(TaskStatus::Completed));
    // A second read does not prolong the retention.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(status(&tasks, "ada", &read.task_id), None);
    let ttl = Duration::from_millis(unread.ttl_ms.unwrap());
    sleep(ttl - Duration::from_secs(62)).await;
    assert_eq!(tasks.table().records.len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!((status(&tasks, "ada", &unread.task_id), tasks.table().records.len()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn task_is_cancelled_at_its_time_limit() {
    let tasks = Tasks::new(CALL_MAX);
    let (call, _end, _) = call("ada");
    let task = tasks.start(call).ok().unwrap();
    sleep(CALL_MAX + PULL_ALLOWANCE - Duration::from_secs(1)).await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Working));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn call_beyond_the_limits_stays_a_request() {
    let tasks = Tasks::new(CALL_MAX);
    let (mut started, mut ends) = (Vec::new(), Vec::new());
    let outcome = loop {
        let (call, end, _) = call("ada");
        match tasks.start(call) {
            Ok(task) => {
                started.push(task);
                ends.push(end);
            }
            Err(outcome) => {
                end.send(Ok(text("answered"))).unwrap();
                break outcome.await.unwrap();
            }
        }
    };
    assert_eq!((outcome, started.len()), (text("answered"), PRINCIPAL_MAX.bytes / TASK_BYTES));
    // Other principals have room for tasks until the total limit is reached.
    let start_as = |name| tasks.start(call(name).0).is_ok();
    for _ in started.len()..TOTAL_MAX.bytes / TASK_BYTES {
        assert!(start_as("bob"));
    }
    assert_eq!(["bob", "eve", "dan"].map(start_as), [false; 3]);
    // Small outcomes leave room for more tasks, up to the maximum number of tasks.
    for end in ends {
        end.send(Ok(text("small"))).unwrap();
    }
    settle().await;
    while let Ok(task) = tasks.start({
        let (call, end, _) = call("ada");
        end.send(Ok(text("small"))).unwrap();
        call
    }) {
        started.push(task);
        settle().await;
    }
    assert_eq!(started.len(), PRINCIPAL_MAX.tasks);
}

#[test]
fn outcome_size_counts_text_and_structured_content() {
    let mut large = CallToolResult::structured(serde_json::json!({"stdout": "x".repeat(1000)}));
    large.content = vec![ContentBlock::text("y".repeat(2000))];
    let (_, bytes) = outcome::settle("execute", &principal("ada"), Ok(large));
    assert!((5000..6500).contains(&bytes.kept) && bytes.written > 3000, "{bytes:?}");
}

#[test]
fn only_failures_of_the_server_fail_a_task() {
    let completed = outcome::settle("execute", &principal("ada"), Err(CallerFault::ShuttingDown.into())).0;
    let TaskPayload::Completed { result } = &completed else { panic!("{completed:?}") };
    assert_eq!((&result["isError"], &result["_meta"]["waggle/error"]["code"]), (&true.into(), &"shutting_down".into()));
    let failed = outcome::settle("execute", &principal("ada"), Err(Failure::Panic)).0;
    let TaskPayload::Failed { error } = &failed else { panic!("{failed:?}") };
    assert_eq!((&error["code"], &error["data"]["code"]), (&(-32603).into(), &"internal".into()));
}

#[tokio::test(start_paused = true)]
async fn poll_returns_the_stage_and_new_output() {
    let tasks = Tasks::new(CALL_MAX);
    let (call, _end, progress) = call("ada");
    progress.stage(0.0, None, "running the code");
    progress.output(OutputStream::Stdout, b"first\n");
    let task = tasks.start(call).ok().unwrap();
    let message = || tasks.get(&principal("ada"), &task.task_id).unwrap().task.status_message.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(message(), "running the code (3 s)\nfirst\n");
    assert_eq!(message(), "running the code (3 s)");
}

#[tokio::test(start_paused = true)]
async fn end_drops_all_tasks() {
    let tasks = Tasks::new(CALL_MAX);
    let (call_to_replace, _, _) = call("ada");
    let stuck = RunningCall { outcome: Box::pin(pending()), ..call_to_replace };
    tasks.start(stuck).ok().unwrap();
    let task = tasks.start(call("ada").0).ok().unwrap();
    tasks.close();
    settle().await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Cancelled));
    // The call is returned, so that it continues as a request.
    assert_eq!(tasks.start(call("ada").0).err().map(drop), Some(()));
    tasks.end().await;
    assert_eq!(tasks.table().records.len(), 0);
}
