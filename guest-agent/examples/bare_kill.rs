// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The floor for the agent's kills: ten sleeping processes in a cgroup, `cgroup.kill`, and the wait until the kernel
//! says that it is empty. Prints the microseconds of each round. The machine's root runs it, for
//! `host/benches/figures`.
#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use std::{
    error::Error,
    fs::{self, File},
    io::{Read, Seek},
    os::fd::AsFd,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const GROUP: &str = "/sys/fs/cgroup/bare-kill";
const PROCESSES: usize = 10;
const ROUNDS: usize = 20;
/// As the other side of the comparison waits.
const SETTLED: Duration = Duration::from_millis(200);

fn main() -> Result<(), Box<dyn Error>> {
    let group = Path::new(GROUP);
    fs::create_dir_all(group)?;
    for _ in 0..ROUNDS {
        let mut children = Vec::new();
        for _ in 0..PROCESSES {
            let child = Command::new("sleep").arg("1000").spawn()?;
            fs::write(group.join("cgroup.procs"), child.id().to_string())?;
            children.push(child);
        }
        sleep(SETTLED);
        let mut events = File::open(group.join("cgroup.events"))?;
        let mut text = String::new();
        let started = Instant::now();
        fs::write(group.join("cgroup.kill"), "1")?;
        loop {
            text.clear();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.contains("populated 0") {
                break;
            }
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::NONE)?;
        }
        println!("{}", started.elapsed().as_micros());
        for mut child in children {
            child.wait()?;
        }
    }
    Ok(fs::remove_dir(group)?)
}
