// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's client and the real guest agent, on the two ends of a socket pair: every call, and every end of one.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use guest_agent::{Guest, Identity};
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use waggle::{
    domain::{
        guest_path::GuestPath,
        ports::{CallFault, Command, EndCause, Ended, OutputStream, PortFuture, RefusalKind, Script, User},
    },
    infra::agent::{self, AgentClient},
};
use waggle_protocol::Origin;

/// How long a stuck test waits before it says so.
const STUCK: Duration = Duration::from_secs(30);

struct Machine {
    agent: AgentClient,
    root: TempDir,
    serving: JoinHandle<Result<(), guest_agent::ServeFault>>,
}

async fn machine() -> Machine {
    let root = tempfile::tempdir().unwrap();
    for folder in ["home/sandbox", "tmp"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let guest = Guest {
        origin: Origin::Host,
        root: root.path().to_owned(),
        identity: Identity::Caller,
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
    };
    let (near, far) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(guest_agent::serve(far, guest, || {}));
    let agent = timeout(STUCK, agent::connect(near)).await.unwrap().unwrap();
    Machine { agent, root, serving }
}

#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn shell(code: &str) -> Command {
    Command {
        argv: vec!["sh".to_owned()],
        script: Some(Script { extension: "sh", code: code.as_bytes().to_vec() }),
        env: vec![("GREETING".to_owned(), "hello".to_owned())],
        user: User::Sandbox,
        timeout: Duration::from_secs(20),
    }
}

async fn run_until(machine: &Machine, command: Command, cancelled: PortFuture<'_, ()>) -> (Ended, Outcome) {
    let mut outcome = Outcome::default();
    let mut collect = |stream, bytes: &[u8]| match stream {
        OutputStream::Stdout => outcome.stdout.extend_from_slice(bytes),
        OutputStream::Stderr => outcome.stderr.extend_from_slice(bytes),
    };
    let ended = timeout(STUCK, machine.agent.exec(command, cancelled, &mut collect)).await.unwrap().unwrap();
    (ended, outcome)
}

async fn run(machine: &Machine, command: Command) -> (Ended, Outcome) {
    run_until(machine, command, Box::pin(std::future::pending())).await
}

fn path(path: &str) -> GuestPath {
    GuestPath::parse(path).unwrap()
}

fn refusal(fault: CallFault) -> (RefusalKind, String) {
    match fault {
        CallFault::Refused { kind, message } => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn code_runs_from_a_file_that_is_gone_afterwards() {
    let machine = machine().await;
    let code = "echo $GREETING; echo oops >&2; pwd; echo $0; exit 3";
    let (ended, outcome) = run(&machine, shell(code)).await;
    assert_eq!((ended.exit_code, ended.signal, ended.cause), (3, None, EndCause::Exited));
    assert_eq!(outcome.stderr, b"oops\n");
    let stdout = String::from_utf8(outcome.stdout).unwrap();
    let lines: Vec<_> = stdout.lines().collect();
    let root = machine.root.path().canonicalize().unwrap();
    assert_eq!(lines[0], "hello");
    assert_eq!(lines[1], root.join("home/sandbox").to_str().unwrap());
    let name = lines[2].rsplit_once('/').unwrap().1;
    assert!(name.starts_with("waggle_") && name.len() == "waggle_0123456789ab.sh".len(), "{name}");
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_signal_is_told_as_128_and_its_number() {
    let machine = machine().await;
    let (ended, _) = run(&machine, shell("kill -TERM $$")).await;
    assert_eq!((ended.exit_code, ended.signal, ended.cause), (143, Some(15), EndCause::Exited));
}

#[tokio::test]
async fn a_deadline_kills_children_that_ignore_signals_too() {
    let machine = machine().await;
    let mut command = shell("trap '' TERM INT HUP; (trap '' TERM; echo child; sleep 1000) & echo parent; wait");
    command.timeout = Duration::from_millis(500);
    let (ended, outcome) = run(&machine, command).await;
    assert_eq!((ended.exit_code, ended.signal, ended.cause), (137, Some(9), EndCause::TimedOut));
    assert_eq!(outcome.stdout.len(), "child\nparent\n".len());
}

#[tokio::test]
async fn a_cancel_in_the_middle_of_a_flood_ends_it() {
    let machine = machine().await;
    let cancelled = Box::pin(tokio::time::sleep(Duration::from_millis(300)));
    let (ended, outcome) = run_until(&machine, shell("exec cat /dev/zero"), cancelled).await;
    assert_eq!((ended.signal, ended.cause), (Some(9), EndCause::Cancelled));
    assert!(outcome.stdout.len() > 1_000_000, "{} bytes", outcome.stdout.len());
}

#[tokio::test]
async fn a_command_is_over_although_a_background_child_holds_its_pipes() {
    let machine = machine().await;
    let started = std::time::Instant::now();
    let (ended, outcome) = run(&machine, shell("sleep 5 & echo last; exit 0")).await;
    assert_eq!((ended.exit_code, ended.cause), (0, EndCause::Exited));
    assert_eq!(outcome.stdout, b"last\n");
    assert!(started.elapsed() < Duration::from_secs(4), "it waited for the child");
}

#[tokio::test]
async fn output_written_just_before_the_exit_is_not_lost() {
    let machine = machine().await;
    for _ in 0..50 {
        let (_, outcome) = run(&machine, shell("head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2")).await;
        assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (60_000, 60_000));
    }
}

#[tokio::test]
async fn dropping_a_call_ends_its_command() {
    let machine = machine().await;
    let code = "echo $$ > pid; sleep 1000";
    let mut ignore = |_, _: &[u8]| {};
    let call = machine.agent.exec(shell(code), Box::pin(std::future::pending()), &mut ignore);
    let pid_file = machine.root.path().join("home/sandbox/pid");
    let pid = tokio::select! {
        ended = call => panic!("{ended:?}"),
        pid = async {
            loop {
                match fs::read_to_string(&pid_file) {
                    Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                    _ => tokio::task::yield_now().await,
                }
            }
        } => pid,
    };
    let gone = async {
        while fs::metadata(format!("/proc/{pid}")).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STUCK, gone).await.expect("the command outlives its call");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let machine = machine().await;
    let command = Command { argv: vec!["no-such-program".to_owned()], script: None, ..shell("") };
    let mut ignore = |_, _: &[u8]| {};
    let call = machine.agent.exec(command, Box::pin(std::future::pending()), &mut ignore);
    let (kind, message) = refusal(timeout(STUCK, call).await.unwrap().unwrap_err());
    assert_eq!(kind, RefusalKind::NotFound);
    assert!(message.starts_with("failed to start no-such-program: "), "{message}");
}

#[tokio::test]
async fn a_file_comes_back_byte_for_byte() {
    let machine = machine().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let place = path("deep/er/data.bin");
    assert_eq!(machine.agent.write_file(&place, &content).await.unwrap(), 3_000_000);
    assert!(machine.agent.read_file(&place, 3_000_000).await.unwrap() == content);
    let meta = fs::metadata(machine.root.path().join("home/sandbox/deep/er/data.bin")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o644);
    assert_eq!(machine.agent.write_file(&path("/home/sandbox/deep/er/data.bin"), b"").await.unwrap(), 0);
    assert_eq!(machine.agent.read_file(&place, 10).await.unwrap(), b"");
}

#[tokio::test]
async fn each_wrong_file_has_an_answer_of_its_own() {
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    fs::create_dir(home.join("folder")).unwrap();
    fs::write(home.join("file"), b"0123456789").unwrap();
    nix::unistd::mkfifo(&home.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("loop", home.join("loop")).unwrap();
    let cases = [
        ("missing", 100, RefusalKind::NotFound),
        ("folder", 100, RefusalKind::IsDirectory),
        ("pipe", 100, RefusalKind::NotRegular),
        ("file", 9, RefusalKind::TooLarge),
        ("file/below", 100, RefusalKind::NotDirectory),
        ("loop", 100, RefusalKind::InvalidPath),
    ];
    for (name, bytes_max, expected) in cases {
        let (kind, message) = refusal(machine.agent.read_file(&path(name), bytes_max).await.unwrap_err());
        assert_eq!(kind, expected, "{message}");
        assert!(message.contains(&format!("/home/sandbox/{name}")), "{message}");
    }
    for (name, expected) in [("folder", RefusalKind::IsDirectory), ("file/below", RefusalKind::NotDirectory)] {
        let (kind, message) = refusal(machine.agent.write_file(&path(name), &[0; 200_000]).await.unwrap_err());
        assert_eq!(kind, expected, "{message}");
    }
    let (kind, _) = refusal(machine.agent.list_files(&path("file"), 10).await.unwrap_err());
    assert_eq!(kind, RefusalKind::NotDirectory);
}

#[tokio::test]
async fn a_link_that_leads_out_stays_inside_the_root() {
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    std::os::unix::fs::symlink("/etc/hostname", home.join("out")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/hostname", home.join("up")).unwrap();
    for name in ["out", "up", "../../../../etc/hostname"] {
        let (kind, message) = refusal(machine.agent.read_file(&path(name), 1000).await.unwrap_err());
        assert_eq!(kind, RefusalKind::NotFound, "{message}");
    }
}

#[tokio::test]
async fn a_folder_is_listed_in_order_and_no_further_than_asked() {
    let machine = machine().await;
    for at in 0..600 {
        fs::write(machine.root.path().join(format!("home/sandbox/{at:03}")), b"x").unwrap();
    }
    let listing = machine.agent.list_files(&path("/home/sandbox"), 1000).await.unwrap();
    let names: Vec<_> = listing.entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, (0..600).map(|at| format!("{at:03}")).collect::<Vec<_>>());
    assert!(!listing.truncated);
    assert_eq!((listing.entries[0].size, listing.entries[0].mode & 0o170_000), (1, 0o100_000));
    let listing = machine.agent.list_files(&path("."), 10).await.unwrap();
    assert_eq!((listing.entries.len(), listing.truncated), (10, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_share_the_link() {
    let machine = machine().await;
    let mut calls = Vec::new();
    for _ in 0..100 {
        calls.push(run(&machine, shell("head -c 300000 /dev/zero")));
    }
    for (ended, outcome) in futures_util::future::join_all(calls).await {
        assert_eq!((ended.exit_code, outcome.stdout.len()), (0, 300_000));
    }
}

#[tokio::test]
async fn a_power_off_ends_the_serving() {
    let machine = machine().await;
    machine.agent.power_off().await;
    timeout(STUCK, machine.serving).await.unwrap().unwrap().unwrap();
    timeout(STUCK, machine.agent.closed()).await.unwrap();
}

#[tokio::test]
async fn an_agent_of_another_version_is_refused_with_both_versions_named() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut preamble = waggle_protocol::handshake::preamble(waggle_protocol::Link::Call);
    preamble[8] = 99;
    far.write_all(&preamble).await.unwrap();
    let fault = agent::connect(near).await.unwrap_err();
    let source = std::error::Error::source(&fault).and_then(std::error::Error::source).unwrap().to_string();
    assert_eq!(source, "protocol version 99 on the other side does not fit version 1 here");
    let mut answer = [0; 16];
    far.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[8], answer[12]), (1, 1));
}
