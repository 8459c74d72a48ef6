// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Measures the figures of docs/benchmarks/libc.md: the shipped agent, built for musl, compared with the same agent for
//! glibc. Both agents run as processes on this machine, and receive the same calls in turn. `./taskw bench-libc` starts
//! this benchmark; `--quick` uses fewer samples and writes nothing.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement panics if its preparation fails, prints its results, and counts far below 2^52"
)]

mod agent;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use agent::Agent;

/// Numbers of samples: of a call with little data, and of a call with much data.
const SMALL_SAMPLES: usize = 1000;
const LARGE_SAMPLES: usize = 40;
const LARGE_BYTES: usize = 64 << 20;
const ENTRIES: usize = 10_000;

fn main() {
    let quick = env::args().any(|word| word == "--quick");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let table = runtime.block_on(measure(if quick { 10 } else { 1 }));
    let page = format!("{HEAD}\nThis run: {}. Medians.\n\n{TABLE_HEAD}{table}{FOOT}", processors());
    println!("{page}");
    if !quick {
        fs::write(root().join("docs/benchmarks/libc.md"), page).unwrap();
    }
}

/// Measures with the usual numbers of samples divided by `divisor`, and returns the table.
async fn measure(divisor: usize) -> String {
    let programs = [build_for_musl(), build_for_glibc()];
    let sizes = programs.each_ref().map(|program| fs::metadata(program).unwrap().len() as f64 / 1024.0);
    let [musl, glibc] = programs;
    let agents = [Agent::start(&musl).await, Agent::start(&glibc).await];
    for agent in &agents {
        agent.fill("many", ENTRIES);
    }
    let (small, large) = (SMALL_SAMPLES / divisor, LARGE_SAMPLES / divisor);
    let content: Vec<u8> = (0..LARGE_BYTES).map(|at| at.to_le_bytes()[0]).collect();
    let head = format!("head -c {LARGE_BYTES} /dev/zero");
    let rows = [
        row("`true`", in_turn(&agents, small, async |agent| agent.run(&["/bin/true"], 0).await).await),
        row("write of one byte", in_turn(&agents, small, async |agent| agent.write("small", b".").await).await),
        row("read of one byte", in_turn(&agents, small, async |agent| agent.read("small", 1).await).await),
        row("list of 10,000 entries", in_turn(&agents, large, async |agent| agent.list("many", ENTRIES).await).await),
        row("write of 64 MiB", in_turn(&agents, large, async |agent| agent.write("large", &content).await).await),
        row("read of 64 MiB", in_turn(&agents, large, async |agent| agent.read("large", LARGE_BYTES).await).await),
        row("output of 64 MiB", {
            in_turn(&agents, large, async |agent| agent.run(&["/bin/sh", "-c", &head], LARGE_BYTES).await).await
        }),
    ];
    let [musl, glibc] = sizes;
    let sizes = format!("| program | {musl:.0} KiB | {glibc:.0} KiB | {:.2} | | | |\n", glibc / musl);
    for agent in agents {
        agent.end().await;
    }
    rows.concat() + &sizes
}

/// Durations and processor times of a call, in milliseconds, for musl and for glibc.
#[derive(Default)]
struct Samples {
    times: [Vec<f64>; 2],
    processor_times: [Vec<f64>; 2],
}

fn row(name: &str, samples: Samples) -> String {
    let [musl, glibc] = samples.times.map(median);
    let [musl_cpu, glibc_cpu] = samples.processor_times.map(median);
    format!(
        "| {name} | {musl:.2} ms | {glibc:.2} ms | {:.2} | {musl_cpu:.2} ms | {glibc_cpu:.2} ms | {:.2} |\n",
        glibc / musl,
        glibc_cpu / musl_cpu,
    )
}

/// Measures a call to each agent in turn. The order alternates, because the second agent finds warmer caches.
async fn in_turn(agents: &[Agent; 2], samples: usize, call: impl AsyncFn(&Agent)) -> Samples {
    let mut taken = Samples::default();
    for round in 0..samples {
        let mut turns: Vec<_> = agents.iter().zip(&mut taken.times).zip(&mut taken.processor_times).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for ((agent, times), processor_times) in turns {
            let (started, processor_time) = (Instant::now(), agent.processor_time());
            call(agent).await;
            times.push(started.elapsed().as_secs_f64() * 1000.0);
            processor_times.push((agent.processor_time() - processor_time).as_secs_f64() * 1000.0);
        }
    }
    taken
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap()
}

const EXAMPLE: &str = "serve_stdin";

fn build_for_musl() -> PathBuf {
    let built = Command::new("guest-agent/build-static").args(["--example", EXAMPLE]).current_dir(root()).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    root().join(String::from_utf8(built.stdout).unwrap().trim())
}

fn build_for_glibc() -> PathBuf {
    let target = "x86_64-unknown-linux-gnu";
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--locked", "--profile", "agent", "-p", "guest-agent", "--example", EXAMPLE])
        .args(["--target", target, "--target-dir", "target/agent"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .current_dir(root())
        .status();
    assert!(built.unwrap().success(), "cargo failed to build for {target}");
    root().join("target/agent").join(target).join("agent/examples").join(EXAMPLE)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn processors() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processors");
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    format!("{count} × {}", model.trim_start_matches([' ', '\t', ':']))
}

const HEAD: &str = "\
# The agent's libc

`./taskw bench-libc` measures this and writes this page; with `-- --quick` it takes fewer samples and writes nothing.
";

const TABLE_HEAD: &str = "\
| what | musl | glibc | glibc ÷ musl | the agent's processor time, musl | glibc | glibc ÷ musl |
| --- | --- | --- | --- | --- | --- | --- |
";

const FOOT: &str = "
## What the numbers mean

- A ratio above 1 means that the agent for musl, which machines use, is faster.
- Both agents run as processes on this machine, without a virtual machine and its sandbox, and with a thread instead of
  the file worker's process. Files are in memory. Each call is made to one agent and then to the other.
- The processor time is the agent's, without the commands that it starts. Compared with the time of the call, it depends
  less on the load of this machine and on the processors that client and agent happen to run on.
- The agent for musl uses the allocator `dlmalloc`. musl's own allocator returns each large buffer to the kernel and
  requests it again; a read of 64 MiB then took twice as long as with glibc.
- Folders are read with the system call `getdents64`, because musl's `readdir` reads 2 KiB at a time. musl's `memcpy`
  for x86_64 is slower for a few bytes, and if source and destination differ in alignment. That explains the rest of the
  difference.
";
