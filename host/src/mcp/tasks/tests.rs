// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What tasks hold and for how long, on a clock that the tests set.

use std::future::pending;

use rmcp::model::{CallToolResult, ContentBlock};
use tokio::sync::oneshot;

use super::*;
use crate::{domain::ports::OutputStream, mcp::errors::Failure, service::fault::CallerFault};

const CALL_MAX: Duration = Duration::from_secs(300);

fn someone(name: &str) -> Principal {
    name.parse().unwrap()
}

/// A call that ends as it is told to, or when it is cancelled.
fn call(owner: &str) -> (Call, oneshot::Sender<Outcome>, Progress) {
    let (end, ended) = oneshot::channel();
    let cancelled = CancellationToken::new();
    let token = cancelled.clone();
    let running = async move {
        tokio::select! {
            Ok(outcome) = ended => outcome,
            () = token.cancelled() => Err(CallerFault::Cancelled { executed: None }.into()),
        }
    };
    let (progress, _) = Progress::new(true);
    let call = Call {
        owner: someone(owner),
        tool: "execute".to_owned(),
        running: Box::pin(running),
        cancelled,
        progress: progress.clone(),
        bytes_max: COMMAND_BYTES_MAX,
    };
    (call, end, progress)
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

/// Lets everything happen that can.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

fn status(tasks: &Tasks, owner: &str, id: &str) -> Option<TaskStatus> {
    tasks.get(&someone(owner), id).ok().map(|task| task.status())
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_known_for_as_long_as_was_said_and_shorter_once_it_was_told() {
    let tasks = Tasks::new(CALL_MAX);
    let (kept, end_kept, _) = call("ada");
    let (told, end_told, _) = call("ada");
    let [kept, told] = [kept, told].map(|call| tasks.hand_over(call).ok().unwrap());
    end_kept.send(Ok(text("kept"))).unwrap();
    end_told.send(Ok(text("told"))).unwrap();
    settle().await;
    let answer = tasks.get(&someone("ada"), &told.task_id).unwrap();
    let TaskPayload::Completed { result } = &answer.payload else { panic!("{answer:?}") };
    assert_eq!(result["content"][0]["text"], "told");
    assert_eq!(answer.task.ttl_ms, Some(60_000));
    sleep(Duration::from_secs(59)).await;
    assert_eq!(status(&tasks, "ada", &told.task_id), Some(TaskStatus::Completed));
    // To be told again does not prolong it.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(status(&tasks, "ada", &told.task_id), None);
    let known = Duration::from_millis(kept.ttl_ms.unwrap());
    sleep(known - Duration::from_secs(62)).await;
    assert_eq!(tasks.table().entries.len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!((status(&tasks, "ada", &kept.task_id), tasks.table().entries.len()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_ends_is_cancelled_in_its_time_and_that_is_told() {
    let tasks = Tasks::new(CALL_MAX);
    let (call, _end, _) = call("ada");
    let task = tasks.hand_over(call).ok().unwrap();
    sleep(CALL_MAX + SLOW_PULL - Duration::from_secs(1)).await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Working));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn without_room_a_call_stays_what_it_was() {
    let tasks = Tasks::new(CALL_MAX);
    let (mut handed, mut ends) = (Vec::new(), Vec::new());
    let back = loop {
        let (call, end, _) = call("ada");
        match tasks.hand_over(call) {
            Ok(task) => {
                handed.push(task);
                ends.push(end);
            }
            Err(running) => {
                end.send(Ok(text("as ever"))).unwrap();
                break running.await.unwrap();
            }
        }
    };
    assert_eq!((back, handed.len()), (text("as ever"), OF_ONE.bytes / COMMAND_BYTES_MAX));
    // There is room for others, though not without end.
    let others = || ["bob", "eve", "dan"].map(|name| tasks.hand_over(call(name).0).is_ok());
    for _ in handed.len()..OF_ALL.bytes / COMMAND_BYTES_MAX {
        assert!(tasks.hand_over(call("bob").0).is_ok());
    }
    assert_eq!(others(), [false; 3]);
    // Small results make room for what is still to come, but not beyond a number of tasks.
    for end in ends {
        end.send(Ok(text("small"))).unwrap();
    }
    settle().await;
    while let Ok(task) = tasks.hand_over({
        let (call, end, _) = call("ada");
        end.send(Ok(text("small"))).unwrap();
        call
    }) {
        handed.push(task);
        settle().await;
    }
    assert_eq!(handed.len(), OF_ONE.tasks);
}

#[test]
fn a_call_counts_for_its_arguments_and_what_it_may_come_to() {
    let call = |tool: &'static str, stdin: usize| {
        let arguments = serde_json::json!({"code": "cat", "stdin": "x".repeat(stdin)});
        bytes_max(&CallToolRequestParams::new(tool).with_arguments(serde_json::from_value(arguments).unwrap()))
    };
    let more = call("execute", 1_000_000).unwrap() - COMMAND_BYTES_MAX;
    assert!((1_000_000..1_001_000).contains(&more), "{more}");
    assert_eq!(call("read_file", 0), None);
}

#[test]
fn a_result_counts_for_what_it_holds() {
    let mut large = CallToolResult::structured(serde_json::json!({"stdout": "x".repeat(1000)}));
    large.content = vec![ContentBlock::text("y".repeat(2000))];
    let (_, bytes) = outcome::settle("execute", Ok(large));
    assert!((3000..3500).contains(&bytes), "{bytes}");
}

#[test]
fn a_failure_of_the_server_has_failed_and_one_of_the_caller_s_is_a_result() {
    let mended = outcome::settle("execute", Err(CallerFault::ShuttingDown.into())).0;
    let TaskPayload::Completed { result } = &mended else { panic!("{mended:?}") };
    assert_eq!(
        (&result["isError"], &result["structuredContent"]["error"]["code"]),
        (&true.into(), &"shutting_down".into())
    );
    let failed = outcome::settle("execute", Err(Failure::Panic)).0;
    let TaskPayload::Failed { error } = &failed else { panic!("{failed:?}") };
    assert_eq!((&error["code"], &error["data"]["code"]), (&(-32603).into(), &"internal".into()));
}

#[tokio::test(start_paused = true)]
async fn a_poll_tells_the_stage_and_the_output_since_the_last_one() {
    let tasks = Tasks::new(CALL_MAX);
    let (call, _end, progress) = call("ada");
    progress.stage(0.0, None, "running the code");
    progress.output(OutputStream::Stdout, b"first\n");
    let task = tasks.hand_over(call).ok().unwrap();
    let message = || tasks.get(&someone("ada"), &task.task_id).unwrap().task.status_message.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(message(), "running the code (3 s)\nfirst\n");
    assert_eq!(message(), "running the code (3 s)");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_server_is_the_end_of_its_tasks() {
    let tasks = Tasks::new(CALL_MAX);
    let (deaf, _, _) = call("ada");
    let stuck = Call { running: Box::pin(pending()), ..deaf };
    tasks.hand_over(stuck).ok().unwrap();
    let task = tasks.hand_over(call("ada").0).ok().unwrap();
    tasks.close();
    settle().await;
    assert_eq!(status(&tasks, "ada", &task.task_id), Some(TaskStatus::Cancelled));
    assert!(tasks.hand_over(call("ada").0).is_err());
    tasks.end().await;
    assert_eq!(tasks.table().entries.len(), 0);
}
