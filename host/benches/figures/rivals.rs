// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two comparisons with sshd, in a machine and without one, and what the agent itself takes.

use std::{collections::HashMap, fs, process::Stdio};

use crate::{
    contest::Contest,
    handover,
    ours::Ours,
    places::{image, qemu_in, root, static_example},
    served::Site,
    sshd::{Client, LocalServer},
    stats::Samples,
};

/// Where the image's socat listens.
const SSH_PORT: u32 = 22;
/// Where the local sshd listens.
const LOCAL_PORT: u16 = 22_022;

/// In one machine: agent and sshd side by side.
pub(crate) async fn in_a_machine() -> String {
    let site = Site::open().await;
    let agent = Ours::Machine(site.start(&image("sshd")).await);
    let (_, run_dir) = qemu_in(site.folder());
    let ssh = Client::new("sandbox", &handover::options(&run_dir.join("link"), SSH_PORT));
    let root_ssh = ssh.as_user("root");
    agent.as_root("cat >/etc/ssh/bench_keys", &ssh.public_key()).await;
    let idle = Memory::of_agent(&root_ssh);
    agent.write("/home/sandbox/bare_kill", &static_example("bare_kill"), Some(0o755)).await;
    let contest = Contest::hold(&agent, &ssh, "/home/sandbox").await;
    let after = Memory::of_agent(&root_ssh);
    let bare = root_ssh.once("/home/sandbox/bare_kill", Stdio::null()).stdout;
    let mut bare_kill = Samples::default();
    for line in String::from_utf8(bare).unwrap().lines() {
        bare_kill.add(line.parse::<f64>().unwrap() / 1000.0);
    }
    agent.end().await;
    site.vms.close().await;
    let binary = fs::metadata(root().join("target/agent/waggle-agent")).unwrap().len();
    format!(
        "\n## Agent and sshd in one machine\n\n{}\n\
         Of the {:.1} ms from a cancel to the last reply, a bare `cgroup.kill` of ten sleeping processes and the wait for \
         `populated 0` take {:.1} ms in the same guest.\n\
         \n## The agent\n\n| what | figure | aim |\n| --- | --- | --- |\n\
         | binary | {:.2} MiB | at most 2 MiB |\n\
         | resident when idle | {} | at most 4 MiB |\n\
         | resident after the transfers | {} | at most 4 MiB |\n\
         | most that was ever resident | {:.1} MiB | |\n",
        contest.table(),
        contest.kill_ms(),
        bare_kill.median(),
        binary as f64 / f64::from(1 << 20),
        idle.describe(),
        after.describe(),
        after.peak_mib,
    )
}

/// On this machine: the agent behind a Unix socket, sshd on loopback.
pub(crate) async fn without_a_machine() -> String {
    let server = LocalServer::start(&root().join("target/bench/sshd"), LOCAL_PORT);
    let agent = Ours::local().await;
    let folder = tempfile::tempdir().unwrap();
    let contest = Contest::hold(&agent, &server.client, &folder.path().display().to_string()).await;
    agent.end().await;
    format!("\n## Agent and sshd without a machine\n\n{}", contest.table())
}

/// What the serving agent has in memory.
struct Memory {
    resident_mib: f64,
    /// Its own, not pages of its file.
    own_mib: f64,
    peak_mib: f64,
}

impl Memory {
    fn of_agent(root_ssh: &Client) -> Self {
        let all = root_ssh.once("for p in /proc/[0-9]*; do cat $p/status; echo; done", Stdio::null()).stdout;
        let all = String::from_utf8(all).unwrap();
        let processes = all.split("\n\n").map(|process| {
            process.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
        });
        // The room's first process has the agent's name, too, but a number of its own in the room.
        let is_serving = |process: &HashMap<&str, &str>| {
            process.get("Name") == Some(&"waggle-agent")
                && process.get("NSpid").is_some_and(|numbers| !numbers.contains('\t'))
                && process.get("PPid") == Some(&"1")
        };
        let serving: HashMap<&str, &str> = processes.into_iter().find(is_serving).unwrap();
        let mib = |name: &str| {
            let kib: f64 = serving.get(name).and_then(|value| value.split(' ').next()).unwrap().parse().unwrap();
            kib / 1024.0
        };
        Self { resident_mib: mib("VmRSS"), own_mib: mib("RssAnon"), peak_mib: mib("VmHWM") }
    }

    fn describe(&self) -> String {
        format!("{:.1} MiB, {:.1} of it not its file", self.resident_mib, self.own_mib)
    }
}
