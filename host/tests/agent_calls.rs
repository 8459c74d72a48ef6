// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's client and the real guest agent, connected by a socket pair: each kind of call, and each way in which a
//! call or the link ends.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a failed step is a failed test"
)]

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use futures_util::future::join_all;
use guest_agent::{Guest, Mode, dial::SingleStream};
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use waggle::{
    agent::{self, AgentClient, Timeouts},
    domain::{
        call_fault::{CallFault, RefusalKind},
        command::{Command, CommandLimits, EndCause, Executed, OutputStream, Script, User},
        file::{FileRange, ListOptions, Writing},
        guest_path::GuestPath,
        machine::PortFuture,
    },
};
use waggle_link::Past;
use waggle_protocol::Origin;

/// Timeout of a stuck test.
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
        mode: Mode::Caller,
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        working_directory: None,
    };
    let (near, far) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(guest_agent::serve(SingleStream::new(far), guest, || {}));
    let agent =
        timeout(STUCK, agent::connect(near, Past::None, "machine", Timeouts::default())).await.unwrap().unwrap();
    Machine { agent, root, serving }
}

impl Machine {
    /// Waits until a command has made the file `started`.
    async fn has_started(&self) {
        while !self.root.path().join("home/sandbox/started").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn shell(code: &str) -> Command {
    Command {
        argv: vec!["sh".to_owned()],
        script: Some(Script { extension: "sh", code: code.as_bytes().to_vec(), loader: None }),
        stdin: Vec::new(),
        env: vec![("GREETING".to_owned(), "hello".to_owned())],
        working_directory: None,
        limits: CommandLimits::default(),
        output_bytes_max: 0,
        keep_output_above_bytes: 100_000,
        user: User::Sandbox,
        timeout: Duration::from_secs(20),
    }
}

async fn run_until(machine: &Machine, command: Command, cancelled: PortFuture<'_, ()>) -> (Executed, Outcome) {
    let mut outcome = Outcome::default();
    let mut collect = |stream, bytes: &[u8]| match stream {
        OutputStream::Stdout => outcome.stdout.extend_from_slice(bytes),
        OutputStream::Stderr => outcome.stderr.extend_from_slice(bytes),
    };
    let ended = timeout(STUCK, machine.agent.exec(command, cancelled, &mut collect)).await.unwrap().unwrap();
    (ended, outcome)
}

async fn run(machine: &Machine, command: Command) -> (Executed, Outcome) {
    run_until(machine, command, Box::pin(std::future::pending())).await
}

fn path(path: &str) -> GuestPath {
    GuestPath::parse(path).unwrap()
}

fn up_to(entries_max: u32, recursive: bool) -> ListOptions {
    ListOptions { entries_max, recursive, ..ListOptions::default() }
}

fn refusal(fault: CallFault) -> (RefusalKind, String) {
    match fault {
        CallFault::Refused { kind, message } => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn code_runs_from_a_file_that_is_removed_afterwards() {
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
async fn long_output_is_kept_in_a_file_of_its_user() {
    let machine = machine().await;
    let (ended, outcome) = run(&machine, shell("seq 1 300000; head -c 100000 /dev/zero >&2")).await;
    let file = ended.stdout.file.unwrap();
    assert_eq!((file.bytes, file.complete), (outcome.stdout.len() as u64, true));
    assert!(machine.agent.read_file(&file.path, None, 10_000_000).await.unwrap().bytes == outcome.stdout);
    assert_eq!(ended.stderr.file, None, "100,000 bytes are not more than 100,000");
    let place = machine.root.path().join(file.path.as_str().trim_start_matches('/'));
    assert_eq!(fs::metadata(place).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(machine.root.path().join("tmp")).unwrap().count(), 1);
}

#[tokio::test]
async fn output_file_of_a_cancelled_call_has_the_output_until_then() {
    let machine = machine().await;
    let flood = shell("yes | head -c 2000000; touch started; exec yes");
    let (ended, outcome) = run_until(&machine, flood, Box::pin(machine.has_started())).await;
    assert_eq!((ended.signal, ended.cause), (Some(9), EndCause::Cancelled));
    assert!(outcome.stdout.len() > 1_000_000, "{} bytes", outcome.stdout.len());
    let file = ended.stdout.file.unwrap();
    let kept = fs::read(machine.root.path().join(file.path.as_str().trim_start_matches('/'))).unwrap();
    assert_eq!(kept.len() as u64, file.bytes);
    assert!(outcome.stdout.starts_with(&kept), "{} bytes kept of {}", kept.len(), outcome.stdout.len());
    assert!(!file.complete || kept.len() == outcome.stdout.len());
}

#[tokio::test]
async fn oldest_kept_outputs_are_removed_first() {
    let machine = machine().await;
    for _ in 0..20 {
        run(&machine, shell("head -c 100001 /dev/zero")).await;
    }
    assert_eq!(fs::read_dir(machine.root.path().join("tmp")).unwrap().count(), 16);
}

#[tokio::test]
async fn stdin_arrives_complete_in_the_requested_folder() {
    let machine = machine().await;
    fs::create_dir(machine.root.path().join("home/sandbox/work")).unwrap();
    let stdin: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let command = Command { stdin: stdin.clone(), working_directory: Some(path("work")), ..shell("pwd >&2; cat") };
    let (ended, outcome) = run(&machine, command).await;
    assert_eq!(ended.exit_code, 0);
    assert!(outcome.stdout == stdin, "{} bytes came back", outcome.stdout.len());
    assert!(outcome.stderr.ends_with(b"/home/sandbox/work\n"));
}

#[tokio::test]
async fn unread_stdin_does_not_delay_a_cancel() {
    let machine = machine().await;
    let command = Command { stdin: vec![0; 4_000_000], ..shell("touch started; sleep 1000") };
    let (ended, _) = run_until(&machine, command, Box::pin(machine.has_started())).await;
    assert_eq!(ended.cause, EndCause::Cancelled);
}

#[tokio::test]
async fn cancel_before_the_end_of_stdin_is_confirmed() {
    let machine = machine().await;
    let command = Command { stdin: vec![0; 4_000_000], ..shell("sleep 1000") };
    let (ended, _) = run_until(&machine, command, Box::pin(std::future::ready(()))).await;
    assert_eq!((ended.signal, ended.cause), (Some(9), EndCause::Cancelled));
}

#[tokio::test]
async fn signal_is_reported_as_128_plus_its_number() {
    let machine = machine().await;
    let (ended, _) = run(&machine, shell("kill -TERM $$")).await;
    assert_eq!((ended.exit_code, ended.signal, ended.cause), (143, Some(15), EndCause::Exited));
}

#[tokio::test]
async fn deadline_kills_children_that_ignore_signals() {
    let machine = machine().await;
    let mut command = shell("trap '' TERM INT HUP; (trap '' TERM; echo child; sleep 1000) & echo parent; wait");
    command.timeout = Duration::from_millis(500);
    let (ended, outcome) = run(&machine, command).await;
    assert_eq!((ended.exit_code, ended.signal, ended.cause), (137, Some(9), EndCause::TimedOut));
    assert_eq!(outcome.stdout.len(), "child\nparent\n".len());
}

#[tokio::test]
async fn command_ends_although_a_background_child_holds_its_pipes() {
    let machine = machine().await;
    let started = std::time::Instant::now();
    let (ended, outcome) = run(&machine, shell("sleep 5 & echo last; exit 0")).await;
    assert_eq!((ended.exit_code, ended.cause), (0, EndCause::Exited));
    assert_eq!(outcome.stdout, b"last\n");
    assert!(started.elapsed() < Duration::from_secs(4), "the call waited for the child");
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
    let code = "echo $$ > pid; touch started; sleep 1000";
    let mut ignore = |_, _: &[u8]| {};
    let call = machine.agent.exec(shell(code), Box::pin(std::future::pending()), &mut ignore);
    tokio::select! {
        ended = call => panic!("{ended:?}"),
        () = machine.has_started() => {}
    }
    let pid = fs::read_to_string(machine.root.path().join("home/sandbox/pid")).unwrap();
    let gone = async {
        while fs::metadata(format!("/proc/{}", pid.trim())).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STUCK, gone).await.expect("the command outlives its call");
}

#[tokio::test]
async fn error_for_a_missing_program_names_it() {
    let machine = machine().await;
    let command = Command { argv: vec!["no-such-program".to_owned()], script: None, ..shell("") };
    let mut ignore = |_, _: &[u8]| {};
    let call = machine.agent.exec(command, Box::pin(std::future::pending()), &mut ignore);
    let (kind, message) = refusal(timeout(STUCK, call).await.unwrap().unwrap_err());
    assert_eq!(kind, RefusalKind::NotFound);
    assert!(message.starts_with("failed to start no-such-program: "), "{message}");
}

#[tokio::test]
async fn file_is_read_back_byte_for_byte() {
    let machine = machine().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let place = path("deep/er/data.bin");
    assert_eq!(machine.agent.write_file(&place, &content, Writing::default()).await.unwrap(), 3_000_000);
    assert!(machine.agent.read_file(&place, None, 3_000_000).await.unwrap().bytes == content);
    let meta = fs::metadata(machine.root.path().join("home/sandbox/deep/er/data.bin")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o644);
    assert_eq!(
        machine.agent.write_file(&path("/home/sandbox/deep/er/data.bin"), b"", Writing::default()).await.unwrap(),
        0
    );
    assert_eq!(machine.agent.read_file(&place, None, 10).await.unwrap().bytes, b"");
}

#[tokio::test]
async fn file_is_read_in_consecutive_parts() {
    let machine = machine().await;
    let content: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    machine.agent.write_file(&path("data"), &content, Writing::default()).await.unwrap();
    let mut whole = Vec::new();
    loop {
        let range = Some(FileRange { offset: whole.len() as u64, limit: 70_001 });
        let part = machine.agent.read_file(&path("data"), range, 100_000).await.unwrap();
        assert_eq!(part.file_size, 300_000);
        if part.bytes.is_empty() {
            break;
        }
        whole.extend(part.bytes);
    }
    assert!(whole == content);
    let too_much = Some(FileRange { offset: 0, limit: 100_001 });
    let (kind, _) = refusal(machine.agent.read_file(&path("data"), too_much, 100_000).await.unwrap_err());
    assert_eq!(kind, RefusalKind::TooLarge);
}

#[tokio::test]
async fn file_of_procfs_is_read_to_its_end() {
    let machine = machine().await;
    let proc = machine.root.path().join("proc-copy");
    fs::create_dir(&proc).unwrap();
    nix::mount::mount(Some("proc"), &proc, Some("proc"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let read = machine.agent.read_file(&path("/proc-copy/version"), None, 1000).await;
    nix::mount::umount(&proc).unwrap();
    let read = read.unwrap();
    assert!(read.bytes.starts_with(b"Linux version "), "{read:?}");
    assert_eq!(read.file_size, 0);
}

#[tokio::test]
async fn file_is_replaced_atomically_and_keeps_its_mode() {
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    fs::write(home.join("script"), "old").unwrap();
    fs::set_permissions(home.join("script"), fs::Permissions::from_mode(0o751)).unwrap();
    let reader = fs::File::open(home.join("script")).unwrap();
    std::os::unix::fs::symlink("script", home.join("link")).unwrap();
    machine.agent.write_file(&path("link"), b"new", Writing::default()).await.unwrap();
    assert_eq!(fs::read(home.join("script")).unwrap(), b"new");
    assert_eq!(fs::metadata(home.join("script")).unwrap().permissions().mode() & 0o7777, 0o751);
    assert!(fs::symlink_metadata(home.join("link")).unwrap().is_symlink());
    assert_eq!(
        std::io::read_to_string(reader).unwrap(),
        "old",
        "a reader that opened the file before the write must still read the old content"
    );
    let how = Writing { mode: Some(0o600), append: false };
    machine.agent.write_file(&path("script"), b"newer", how).await.unwrap();
    assert_eq!(fs::metadata(home.join("script")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(&home).unwrap().count(), 2, "a temporary file was left");
}

#[tokio::test]
async fn hard_linked_file_keeps_both_names() {
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    fs::write(home.join("one"), "old").unwrap();
    fs::hard_link(home.join("one"), home.join("two")).unwrap();
    machine.agent.write_file(&path("one"), b"new", Writing::default()).await.unwrap();
    assert_eq!(fs::read(home.join("two")).unwrap(), b"new");
}

#[tokio::test]
async fn append_adds_to_the_end_of_a_file() {
    let machine = machine().await;
    let how = Writing { mode: None, append: true };
    for part in ["one ", "two ", "three"] {
        machine.agent.write_file(&path("log/file"), part.as_bytes(), how).await.unwrap();
    }
    assert_eq!(fs::read(machine.root.path().join("home/sandbox/log/file")).unwrap(), b"one two three");
}

#[tokio::test]
async fn write_to_a_full_disk_keeps_the_old_content() {
    let machine = machine().await;
    let small = machine.root.path().join("small");
    fs::create_dir(&small).unwrap();
    let options = Some("size=1m");
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), options).unwrap();
    let place = path("/small/file");
    machine.agent.write_file(&place, b"old", Writing::default()).await.unwrap();
    let fault = machine.agent.write_file(&place, &vec![1; 2_000_000], Writing::default()).await.unwrap_err();
    let (content, names) = (fs::read(small.join("file")).unwrap(), fs::read_dir(&small).unwrap().count());
    // The agent may still hold the file open.
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let (kind, message) = refusal(fault);
    assert_eq!(kind, RefusalKind::NoSpace, "{message}");
    assert_eq!((content.as_slice(), names), (&b"old"[..], 1));
}

#[tokio::test]
async fn listing_is_recursive_and_has_names_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    fs::create_dir_all(home.join("a/b")).unwrap();
    fs::write(home.join("a/b/c"), "12").unwrap();
    fs::write(home.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    std::os::unix::fs::symlink("a", home.join("link")).unwrap();
    let listing = machine.agent.list_files(&path("."), &up_to(100, true)).await.unwrap();
    let names: Vec<_> = listing.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "a/b", "a/b/c", "link", "\\xFF"]);
    assert_eq!(listing.entries[4].raw_name.as_deref(), Some(&b"\xff"[..]));
    let listing = machine.agent.list_files(&path("."), &up_to(3, true)).await.unwrap();
    assert_eq!((listing.entries.len(), listing.total, listing.next.as_deref()), (3, 5, Some("a/b/c")));
}

#[tokio::test]
async fn each_kind_of_unusable_file_has_its_own_error() {
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
        let (kind, message) = refusal(machine.agent.read_file(&path(name), None, bytes_max).await.unwrap_err());
        assert_eq!(kind, expected, "{message}");
        assert!(message.contains(&format!("/home/sandbox/{name}")), "{message}");
    }
    for (name, expected) in [("folder", RefusalKind::IsDirectory), ("file/below", RefusalKind::NotDirectory)] {
        let (kind, message) =
            refusal(machine.agent.write_file(&path(name), &[0; 200_000], Writing::default()).await.unwrap_err());
        assert_eq!(kind, expected, "{message}");
    }
    let (kind, _) = refusal(machine.agent.list_files(&path("file"), &up_to(10, false)).await.unwrap_err());
    assert_eq!(kind, RefusalKind::NotDirectory);
}

#[tokio::test]
async fn symlink_never_leaves_the_root() {
    let machine = machine().await;
    let home = machine.root.path().join("home/sandbox");
    std::os::unix::fs::symlink("/etc/hostname", home.join("out")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/hostname", home.join("up")).unwrap();
    for name in ["out", "up", "../../../../etc/hostname"] {
        let (kind, message) = refusal(machine.agent.read_file(&path(name), None, 1000).await.unwrap_err());
        assert_eq!(kind, RefusalKind::NotFound, "{message}");
    }
}

#[tokio::test]
async fn folder_is_listed_in_order_up_to_the_limit() {
    let machine = machine().await;
    for at in 0..600 {
        fs::write(machine.root.path().join(format!("home/sandbox/{at:03}")), b"x").unwrap();
    }
    let listing = machine.agent.list_files(&path("/home/sandbox"), &up_to(1000, false)).await.unwrap();
    let names: Vec<_> = listing.entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, (0..600).map(|at| format!("{at:03}")).collect::<Vec<_>>());
    assert_eq!((listing.total, listing.next), (600, None));
    assert_eq!((listing.entries[0].size, listing.entries[0].mode & 0o170_000), (1, 0o100_000));
    let listing = machine.agent.list_files(&path("."), &up_to(10, false)).await.unwrap();
    assert_eq!((listing.entries.len(), listing.total, listing.next.as_deref()), (10, 600, Some("009")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_share_the_link() {
    let machine = machine().await;
    let mut calls = Vec::new();
    for _ in 0..100 {
        calls.push(run(&machine, shell("head -c 300000 /dev/zero")));
    }
    for (ended, outcome) in join_all(calls).await {
        assert_eq!((ended.exit_code, outcome.stdout.len()), (0, 300_000));
    }
}

#[tokio::test]
async fn power_off_ends_the_agent() {
    let machine = machine().await;
    machine.agent.power_off().await;
    timeout(STUCK, machine.serving).await.unwrap().unwrap().unwrap();
    timeout(STUCK, machine.agent.closed()).await.unwrap();
}

#[tokio::test]
async fn power_off_works_at_the_limit_of_calls() {
    let machine = machine().await;
    let running = (0..waggle_protocol::CALLS_MAX).map(|_| async {
        let mut ignore = |_, _: &[u8]| {};
        let never = Box::pin(std::future::pending());
        let ended = machine.agent.exec(shell("touch started.$$; sleep 1000"), never, &mut ignore).await;
        assert!(!matches!(ended, Ok(_) | Err(CallFault::Refused { .. })), "{ended:?}");
    });
    let home = machine.root.path().join("home/sandbox");
    let all_run = async {
        while fs::read_dir(&home).unwrap().count() < waggle_protocol::CALLS_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        machine.agent.power_off().await;
        machine.agent.closed().await
    };
    let (_cut, reason) = timeout(STUCK, async { tokio::join!(join_all(running), all_run) }).await.unwrap();
    assert_eq!(reason, "peer closed the link");
    timeout(STUCK, machine.serving).await.unwrap().unwrap().unwrap();
}
