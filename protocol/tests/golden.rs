// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The frozen encoding of every message. If this test fails, do not change the bytes. To change a message, add a
//! variant. To change the protocol, add a version with its own file.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its bytes must fail")]

use std::{array, fmt::Write as _, fs, path::Path};

use waggle_protocol::{
    Fault, FaultKind, Hello, Input, Link, Origin, Ready, Reply, Request, Seed, VERSION, Welcome,
    boot::{BootConfig, Network, Relaxed, Transport},
    egress::{Address, EgressRequest, FlowReply, Refusal},
    frame,
    generation::{NONCE_BYTES, Opening},
    handshake,
    reply::{Cause, Entry, Exited, OutputFile, RefusedCall, Status},
    request::{Exec, Keep, Limits, Loader, Script, User},
};

#[test]
fn encoding_is_frozen() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bytes/v{VERSION}.txt"));
    let frozen = fs::read_to_string(&path).unwrap();
    let now = render();
    for (frozen, now) in frozen.lines().zip(now.lines()) {
        assert_eq!(frozen, now, "the encoding of a shipped message has changed");
    }
    assert_eq!(frozen.lines().count(), now.lines().count(), "append the new messages to {}:\n{now}", path.display());
}

fn render() -> String {
    let mut text = String::from("# One message a line: its name, and the bytes of its frame.\n");
    let mut line = |name: &str, bytes: &[u8]| {
        write!(text, "{name} ").unwrap();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    };
    line("preamble.call", &handshake::preamble(Link::Call));
    line("preamble.egress", &handshake::preamble(Link::Egress));
    let (guest, host) = ([1; NONCE_BYTES], [2; NONCE_BYTES]);
    line("opening.dial", &Opening::Dial { guest }.encode());
    line("opening.answer", &Opening::Answer { guest, host }.encode());
    line("opening.start", &Opening::Start { guest, host }.encode());
    let (accepted, _) = handshake::check_preamble(handshake::preamble(Link::Call), Link::Call);
    line("answer.accepted", &accepted.unwrap());
    let (wrong_link, _) = handshake::check_preamble(handshake::preamble(Link::Egress), Link::Call);
    line("answer.wrong_link", &wrong_link.unwrap());
    for (name, bytes) in requests().into_iter().chain(replies()).chain(egress()).chain(beginnings()) {
        line(name, &bytes);
    }
    text
}

fn framed<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).unwrap();
    bytes
}

fn beginnings() -> Vec<(&'static str, Vec<u8>)> {
    let boot = BootConfig {
        image_agent: Some("/agent".to_owned()),
        env: vec![("A".to_owned(), "b".to_owned())],
        working_directory: Some("/app".to_owned()),
        transport: Transport::Serial,
        relaxed: Relaxed { filter: true, ..Relaxed::default() },
        network: Some(Network { ipv6: true }),
        ca_bundle: "pem".to_owned(),
    };
    let welcome = Welcome {
        unix_ns: 1_700_000_000_000_000_000,
        hostname: "0123abcd".to_owned(),
        seed: Seed(array::from_fn(|at| u8::try_from(at).unwrap())),
    };
    vec![
        (
            "hello.image",
            framed(&Hello { origin: Origin::Image, build: "0.1.0".to_owned(), programs: vec!["sh".to_owned()] }),
        ),
        ("hello.host", framed(&Hello { origin: Origin::Host, build: String::new(), programs: Vec::new() })),
        ("welcome", framed(&welcome)),
        ("ready", framed(&Ready)),
        ("boot", boot.encode().unwrap()),
    ]
}

fn egress() -> Vec<(&'static str, Vec<u8>)> {
    let connect = |address| framed(&EgressRequest::Connect { address, port: 443 });
    let refused = |reason| framed(&FlowReply::Refused { reason });
    vec![
        ("egress.connect.v4", connect(Address::V4([192, 0, 2, 1]))),
        ("egress.connect.v6", connect(Address::V6([0x20; 16]))),
        ("egress.resolve", framed(&EgressRequest::Resolve { message: b"q" })),
        ("egress.connected", framed(&FlowReply::Connected)),
        ("egress.refused.policy", refused(Refusal::Policy)),
        ("egress.refused.unreachable", refused(Refusal::Unreachable)),
        ("egress.refused.refused", refused(Refusal::Refused)),
        ("egress.refused.timed_out", refused(Refusal::TimedOut)),
        ("egress.refused.busy", refused(Refusal::Busy)),
        ("egress.answer", framed(&FlowReply::Answer { message: b"a" })),
    ]
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let exec = Exec {
        argv: vec!["python3".to_owned()],
        script: Some(Script { extension: "py".to_owned(), bytes: 300, loader: Some(Loader::Python) }),
        stdin_bytes: 9,
        env: vec![("K".to_owned(), "v".to_owned())],
        working_directory: Some("src".to_owned()),
        user: User::Sandbox,
        timeout_ms: 30_000,
        limits: Limits { memory_bytes: Some(1 << 20), pids: Some(64), open_files: Some(256) },
        keep: Keep { above_bytes: 1 << 10, bytes_max: 1 << 20 },
    };
    let bare = Exec {
        script: None,
        stdin_bytes: 0,
        env: Vec::new(),
        working_directory: None,
        user: User::Root,
        limits: Limits::default(),
        ..exec.clone()
    };
    let node = Script { extension: "js".to_owned(), bytes: 1, loader: Some(Loader::Node) };
    let shell = Script { loader: None, ..node.clone() };
    let list = Request::ListFiles { path: "/".to_owned(), after: b"\xff".to_vec(), entries_max: 100, recursive: true };
    let script = |script| Request::Exec(Exec { script: Some(script), ..exec.clone() });
    vec![
        ("request.exec.node", framed(&script(node))),
        ("request.exec.shell", framed(&script(shell))),
        ("request.exec", framed(&Request::Exec(exec))),
        ("request.exec.bare", framed(&Request::Exec(bare))),
        (
            "request.write_file",
            framed(&Request::WriteFile { path: "a".to_owned(), bytes: 5, mode: Some(0o600), append: true }),
        ),
        (
            "request.read_file",
            framed(&Request::ReadFile { path: "a".to_owned(), range: Some((7, 300)), bytes_max: 1 << 20 }),
        ),
        ("request.list_files", framed(&list)),
        ("request.set_clock", framed(&Request::SetClock { unix_ns: 1 })),
        ("request.power_off", framed(&Request::PowerOff)),
        ("request.hold", framed(&Request::Hold)),
        ("input.data", framed(&Input::Data(b"\x00\xff"))),
        ("input.cancel", framed(&Input::Cancel)),
    ]
}

fn replies() -> Vec<(&'static str, Vec<u8>)> {
    let entry = Entry { name: b"\xff.txt".to_vec(), mode: 0o100_644, size: 7, modified_unix_s: -1 };
    let exited = |status, cause| {
        let file = OutputFile { path: "/tmp/f".to_owned(), bytes: 300, complete: true };
        let (stdout_file, stderr_file) = (Some(file), None);
        framed(&Reply::Exited(Exited {
            status,
            cause,
            duration_us: 1000,
            stdout_file,
            stderr_file,
            background_file: Some("/tmp/b".to_owned()),
            refused: vec![RefusedCall { name: "mount".to_owned(), count: 300 }],
            background_memory_kills: 2,
        }))
    };
    let list_end = |too_deep, next| Reply::ListEnd { total: 300, total_is_minimum: too_deep, too_deep, next };
    let list_end_of_minimum = Reply::ListEnd { total: 300, total_is_minimum: true, too_deep: false, next: None };
    let mut all = vec![
        ("reply.stdout", framed(&Reply::Stdout(b"out"))),
        ("reply.stderr", framed(&Reply::Stderr(b"err"))),
        ("reply.data", framed(&Reply::Data(b"data"))),
        ("reply.entries", framed(&Reply::Entries(vec![entry]))),
        ("reply.exited.itself", exited(Status::Code(3), Cause::Itself)),
        ("reply.exited.deadline", exited(Status::Signal(9), Cause::Deadline)),
        ("reply.exited.cancelled", exited(Status::Signal(9), Cause::Cancelled)),
        ("reply.exited.memory", exited(Status::Signal(9), Cause::Memory)),
        ("reply.written", framed(&Reply::Written { bytes: 5 })),
        ("reply.file_end", framed(&Reply::FileEnd { size: 300 })),
        ("reply.list_end", framed(&list_end(true, Some(b"\xff".to_vec())))),
        ("reply.list_end.whole", framed(&list_end(false, None))),
        ("reply.list_end.minimum", framed(&list_end_of_minimum)),
        ("reply.clock_set", framed(&Reply::ClockSet { background_memory_kills: 2 })),
        ("reply.done", framed(&Reply::Done)),
    ];
    let kinds = [
        ("reply.fault.not_found", FaultKind::NotFound),
        ("reply.fault.is_directory", FaultKind::IsDirectory),
        ("reply.fault.not_directory", FaultKind::NotDirectory),
        ("reply.fault.not_regular", FaultKind::NotRegular),
        ("reply.fault.denied", FaultKind::Denied),
        ("reply.fault.too_large", FaultKind::TooLarge),
        ("reply.fault.no_space", FaultKind::NoSpace),
        ("reply.fault.read_only", FaultKind::ReadOnly),
        ("reply.fault.invalid_path", FaultKind::InvalidPath),
        ("reply.fault.busy", FaultKind::Busy),
        ("reply.fault.bad_request", FaultKind::BadRequest),
        ("reply.fault.other", FaultKind::Other),
    ];
    all.extend(kinds.map(|(name, kind)| (name, framed(&Reply::Fault(Fault { kind, message: "m".to_owned() })))));
    all
}
