// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The cost of waggle compared with a bare machine: for a boot, for a command, and for moving bytes.

use std::{fs, time::Duration};

use serde_json::json;
use waggle::domain::{
    command::{Command, CommandLimits, User},
    file::Writing,
    guest_path::GuestPath,
    machine::Machine,
};

use crate::{
    bare::Bare,
    places::{image, qemu_in, root},
    served::{Served, Site},
    stats::{Samples, rate, rounds, timed},
};

/// Number of boots of each kind. The kinds alternate.
const BOOTS: usize = 9;
const CALLS: usize = 100;
/// Number of files moved in each direction, and the size of each file.
const FILES: usize = 15;
const FILE_BYTES: usize = 8 << 20;

#[derive(Default)]
struct Figures {
    ready: Samples,
    created: Samples,
    init: Samples,
    true_total: Samples,
    true_own: Samples,
    true_mcp: Samples,
    raw_round_trip: Samples,
    raw_up: Samples,
    raw_down: Samples,
    read: Samples,
    write: Samples,
    read_byte: Samples,
    write_byte: Samples,
    read_mcp: Samples,
    write_mcp: Samples,
}

/// Measures everything and returns the table.
pub(crate) async fn measure() -> String {
    let site = Site::open().await;
    let mut figures = Figures::default();
    let bare = Bare::new();
    // The first start prepares the image.
    site.start(&image("shell")).await.stop().await;
    boots(&site, &bare, &mut figures).await;
    calls(&site, &bare, &mut figures).await;
    mcp(&site, &mut figures).await;
    site.vms.close().await;
    figures.page()
}

async fn boots(site: &Site, bare: &Bare, figures: &mut Figures) {
    for _ in 0..rounds(BOOTS) {
        let (time, machine) = timed(site.start(&image("shell"))).await;
        figures.ready.add_ms(time);
        let (line, _) = qemu_in(site.folder());
        machine.stop().await;
        let folder = tempfile::tempdir_in(site.folder()).unwrap();
        let running = bare.start(&line, folder.path()).await;
        figures.init.add_ms(running.init);
    }
}

async fn calls(site: &Site, bare: &Bare, figures: &mut Figures) {
    let machine = site.start(&image("shell")).await;
    let (line, _) = qemu_in(site.folder());
    let folder = tempfile::tempdir_in(site.folder()).unwrap();
    let mut running = bare.start(&line, folder.path()).await;
    let content: Vec<u8> = (0..FILE_BYTES).map(|at| at.to_le_bytes()[0]).collect();
    for _ in 0..rounds(CALLS) {
        figures.raw_round_trip.add_ms(running.round_trip().await);
        let (total, own) = run_true(&*machine).await;
        figures.true_total.add_ms(total);
        figures.true_own.add_ms(total.saturating_sub(own));
    }
    for _ in 0..rounds(FILES) {
        figures.raw_up.add(rate(FILE_BYTES, running.up(FILE_BYTES).await));
        figures.raw_down.add(rate(FILE_BYTES, running.down(&content).await));
        let (time, written) = timed(machine.agent().write_file(&path(), &content, Writing::default())).await;
        assert_eq!(written.unwrap(), FILE_BYTES as u64);
        figures.write.add(rate(FILE_BYTES, time));
        let (time, read) = timed(machine.agent().read_file(&path(), None, FILE_BYTES as u64)).await;
        assert!(read.unwrap().bytes == content, "the file came back changed");
        figures.read.add(rate(FILE_BYTES, time));
        let (time, written) = timed(machine.agent().write_file(&path(), b".", Writing::default())).await;
        assert_eq!(written.unwrap(), 1);
        figures.write_byte.add_ms(time);
        let (time, read) = timed(machine.agent().read_file(&path(), None, 1)).await;
        assert_eq!(read.unwrap().bytes, b".");
        figures.read_byte.add_ms(time);
    }
    drop(running);
    machine.stop().await;
}

fn path() -> GuestPath {
    GuestPath::parse("file").unwrap()
}

/// Returns a command without a script file.
fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        script: None,
        stdin: Vec::new(),
        env: Vec::new(),
        working_directory: None,
        user: User::Sandbox,
        timeout: Duration::from_secs(60),
        limits: CommandLimits::default(),
        output_bytes_max: 0,
        keep_output_above_bytes: u64::MAX,
    }
}

/// Runs `true`; returns the time of the whole call, and the agent's time from spawn to exit.
async fn run_true(machine: &dyn Machine) -> (Duration, Duration) {
    let mut ignore = |_stream, _bytes: &[u8]| {};
    let call = machine.agent().exec(command(&["/bin/true"]), Box::pin(std::future::pending()), &mut ignore);
    let (total, ended) = timed(call).await;
    let ended = ended.unwrap();
    assert_eq!(ended.exit_code, 0);
    (total, ended.duration)
}

async fn mcp(site: &Site, figures: &mut Figures) {
    let served = Served::start(site, &image("shell")).await;
    for _ in 0..rounds(BOOTS) {
        let (time, created) = timed(served.call("create_environment", json!({"language": "shell"}))).await;
        figures.created.add_ms(time);
        let created = created.structured_content.unwrap();
        served.call("destroy_environment", json!({"environment_id": created.get("environment_id")})).await;
    }
    let created = served.call("create_environment", json!({"language": "shell"})).await;
    let created = created.structured_content.unwrap();
    let id = created.get("environment_id").unwrap();
    for _ in 0..rounds(CALLS) {
        let (total, ran) = timed(served.call("execute", json!({"environment_id": id, "code": "true"}))).await;
        let ran = ran.structured_content.unwrap();
        let own_ms = ran.get("duration_ms").and_then(serde_json::Value::as_f64).unwrap();
        figures.true_mcp.add(total.as_secs_f64() * 1000.0 - own_ms);
    }
    let content = "waggle-".repeat(FILE_BYTES / 7);
    for _ in 0..rounds(FILES) {
        let write = json!({"environment_id": id, "path": "file", "content": content});
        let (time, _) = timed(served.call("write_file", write)).await;
        figures.write_mcp.add(rate(content.len(), time));
        let read = json!({"environment_id": id, "path": "file", "limit": FILE_BYTES});
        let (time, read) = timed(served.call("read_file", read)).await;
        assert!(read.content.first().and_then(|part| part.as_text()).is_some_and(|part| part.text == content));
        figures.read_mcp.add(rate(content.len(), time));
    }
    served.end().await;
}

impl Figures {
    fn page(&self) -> String {
        let median = |samples: &Samples| samples.median();
        let (up, down) = (median(&self.raw_up), median(&self.raw_down));
        let agent_bytes = fs::metadata(root().join("target/agent/waggle-agent")).unwrap().len();
        format!(
            "
| what | figure | compared with | aim |
| --- | --- | --- | --- |
| start to ready | {:.0} ms | {:.2} × the {:.0} ms from QEMU's start to init on a bare machine | 1.3 |
| `create_environment` over MCP, image prepared | {:.0} ms | | |
| `execute` of `true` over MCP, minus spawn to exit | {:.1} ms (p99 {:.1}) | port round trip: {:.2} ms | under 5 ms |
| the same without MCP and without a script file | {:.1} ms of {:.1} ms in total | | |
| write of one byte; read of one byte | {:.1} ms; {:.1} ms | | |
| write of 8 MiB | {:.0} MiB/s | {:.0} % of {down:.0} MiB/s raw | 80 % |
| read of 8 MiB | {:.0} MiB/s | {:.0} % of {up:.0} MiB/s raw | 80 % |
| `write_file` of 8 MiB over MCP | {:.0} MiB/s | {:.0} % of raw | |
| `read_file` of 8 MiB over MCP | {:.0} MiB/s | {:.0} % of raw | |
| binary of the guest agent | {:.2} MiB | | at most 2 MiB |
",
            median(&self.ready),
            median(&self.ready) / median(&self.init),
            median(&self.init),
            median(&self.created),
            median(&self.true_mcp),
            self.true_mcp.percentile(99),
            median(&self.raw_round_trip),
            median(&self.true_own),
            median(&self.true_total),
            median(&self.write_byte),
            median(&self.read_byte),
            median(&self.write),
            100.0 * median(&self.write) / down,
            median(&self.read),
            100.0 * median(&self.read) / up,
            median(&self.write_mcp),
            100.0 * median(&self.write_mcp) / down,
            median(&self.read_mcp),
            100.0 * median(&self.read_mcp) / up,
            agent_bytes as f64 / f64::from(1 << 20),
        )
    }
}
