// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! waggle's agent against OpenSSH's sshd, in turn: a call that does nothing, 64 MiB each way, a kill. sshd is used
//! twice: with one connection that is kept, and with a new one for each call.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, PipeReader, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    mux::Session,
    ours::{BROOD, Ours, SETTLED},
    sshd::Client,
    stats::{Samples, rate, rounds},
};

const CALLS: usize = 200;
/// A new connection takes a second under emulation.
const CALLS_NEW: usize = 20;
const TRANSFERS: usize = 5;
const TRANSFER_BYTES: usize = 64 << 20;
const KILLS: usize = 20;
const KILLS_NEW: usize = 5;

/// One way of working.
#[derive(Default)]
struct Figures {
    call: Samples,
    up: Samples,
    down: Samples,
    kill: Samples,
}

/// All three ways, and the kill in the guest itself if it was measured.
pub(crate) struct Contest {
    ours: Figures,
    kept: Figures,
    new: Figures,
}

impl Contest {
    /// `folder` is where commands of sshd's may write.
    pub(crate) async fn hold(agent: &Ours, ssh: &Client, folder: &str) -> Self {
        let mut contest = Self { ours: Figures::default(), kept: Figures::default(), new: Figures::default() };
        let master = ssh.keep();
        let kept = Kept { socket: master.socket.clone(), folder };
        let new = New { ssh, folder };
        let bytes: Vec<u8> = (0..TRANSFER_BYTES).map(|at| at.to_le_bytes()[0]).collect();
        let content = file_of(&bytes);
        for at in 0..rounds(CALLS) {
            contest.ours.call.add_ms(agent.run_true().await);
            contest.kept.call.add_ms(time(|| kept.run("/bin/true")));
            if at < rounds(CALLS_NEW) {
                contest.new.call.add_ms(time(|| new.run("/bin/true")));
            }
        }
        for _ in 0..rounds(TRANSFERS) {
            contest.ours.up.add(rate(TRANSFER_BYTES, agent.write("ours", &bytes, None).await));
            contest.ours.down.add(rate(TRANSFER_BYTES, agent.read("ours", TRANSFER_BYTES).await));
            contest.kept.up.add(rate(TRANSFER_BYTES, time(|| kept.up(&content))));
            contest.kept.down.add(rate(TRANSFER_BYTES, time(|| kept.down())));
            contest.new.up.add(rate(TRANSFER_BYTES, time(|| new.up(&content))));
            contest.new.down.add(rate(TRANSFER_BYTES, time(|| new.down())));
        }
        for at in 0..rounds(KILLS) {
            contest.ours.kill.add_ms(agent.kill().await);
            contest.kept.kill.add_ms(kept.kill());
            if at < rounds(KILLS_NEW) {
                contest.new.kill.add_ms(new.kill());
            }
        }
        contest
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let row = |what: &str, figure: &dyn Fn(&Figures) -> f64, unit: &str, more_is_better: bool| {
            let (ours, kept, new) = (figure(&self.ours), figure(&self.kept), figure(&self.new));
            let times = if more_is_better { ours / kept } else { kept / ours };
            format!("| {what} | {ours:.1} {unit} | {kept:.1} {unit} | {new:.1} {unit} | {times:.1} × |\n")
        };
        [
            "| what | waggle | sshd, kept connection | sshd, new connection | waggle against kept |\n".to_owned(),
            "| --- | --- | --- | --- | --- |\n".to_owned(),
            row("`true`, p50", &|figures| figures.call.median(), "ms", false),
            row("`true`, p99", &|figures| figures.call.percentile(99), "ms", false),
            row("64 MiB up", &|figures| figures.up.median(), "MiB/s", true),
            row("64 MiB down", &|figures| figures.down.median(), "MiB/s", true),
            row("ten processes, from kill to known death", &|figures| figures.kill.median(), "ms", false),
        ]
        .concat()
    }

    pub(crate) fn kill_ms(&self) -> f64 {
        self.ours.kill.median()
    }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

/// From its start, a file can be read again.
fn again(content: &File) -> OwnedFd {
    (&mut &*content).rewind().unwrap();
    content.try_clone().unwrap().into()
}

fn drain(mut output: PipeReader) {
    let mut bytes = Vec::with_capacity(TRANSFER_BYTES);
    assert_eq!(output.read_to_end(&mut bytes).unwrap(), TRANSFER_BYTES);
}

struct Kept<'a> {
    socket: PathBuf,
    folder: &'a str,
}

impl Kept<'_> {
    fn run(&self, command: &str) {
        assert_eq!(Session::start(&self.socket, command, [null(), null(), null()]).wait(), Some(0), "{command}");
    }

    fn up(&self, content: &File) {
        let command = format!("cat >{}/kept", self.folder);
        assert_eq!(Session::start(&self.socket, &command, [again(content), null(), null()]).wait(), Some(0));
    }

    fn down(&self) {
        let (output, end) = std::io::pipe().unwrap();
        let command = format!("cat {}/kept", self.folder);
        let session = Session::start(&self.socket, &command, [null(), end.into(), null()]);
        drain(output);
        assert_eq!(session.wait(), Some(0));
    }

    fn kill(&self) -> Duration {
        let (output, end) = std::io::pipe().unwrap();
        let session = Session::start(&self.socket, BROOD, [null(), end.into(), null()]);
        let leader = first_line(output);
        sleep(SETTLED);
        time(|| {
            self.run(&format!("kill -s KILL -- -{leader}"));
            assert_ne!(session.wait(), Some(0));
        })
    }
}

struct New<'a> {
    ssh: &'a Client,
    folder: &'a str,
}

impl New<'_> {
    fn run(&self, command: &str) {
        self.ssh.once(command, Stdio::null());
    }

    fn up(&self, content: &File) {
        self.ssh.once(&format!("cat >{}/new", self.folder), again(content).into());
    }

    fn down(&self) {
        let output = self.ssh.once(&format!("cat {}/new", self.folder), Stdio::null()).stdout;
        assert_eq!(output.len(), TRANSFER_BYTES);
    }

    fn kill(&self) -> Duration {
        let mut child = self.ssh.start(BROOD);
        let leader = first_line(child.stdout.take().unwrap());
        sleep(SETTLED);
        time(|| {
            self.run(&format!("kill -s KILL -- -{leader}"));
            child.wait().unwrap();
        })
    }
}

fn first_line(output: impl std::io::Read) -> u32 {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}
