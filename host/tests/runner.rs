// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The runner with its real programs: whatever ends, nothing is left, and the report says what it was.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where its preparation fails"
)]

#[path = "machines/processes.rs"]
mod processes;
#[path = "machines/tiny_kernel.rs"]
mod tiny_kernel;

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::{
    io::ioctl_fionread,
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

#[test]
fn the_hosts_end_ends_everything() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    machine.read_console_until("up");
    // The life line belongs to a process that is killed the hard way.
    let life_line = OwnedFd::from(machine.life_line.take().unwrap());
    let mut host = Command::new("sleep").arg("1000").stdin(life_line).spawn().unwrap();
    assert_eq!(machine.programs().len(), 2);
    host.kill().unwrap();
    host.wait().unwrap();
    assert!(machine.runner.wait().unwrap().success());
    machine.assert_nothing_is_left();
}

#[test]
fn the_runners_end_ends_both_programs() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    machine.read_console_until("up");
    machine.runner.kill().unwrap();
    machine.runner.wait().unwrap();
    processes::wait_until("both programs have ended", || machine.programs().is_empty());
}

#[test]
fn the_report_tells_which_program_ended_and_how() {
    for (name, other) in [("qemu-system-x86_64", "vhost-device-vsock"), ("vhost-device-vsock", "qemu-system-x86_64")] {
        let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
        machine.read_console_until("up");
        let programs = machine.programs();
        assert_ne!(processes::named(&programs, name), processes::named(&programs, other));
        kill_process(processes::named(&programs, name), Signal::KILL).unwrap();
        let report = machine.report();
        assert!(report.contains(name) && report.contains("signal: 9"), "{report}");
        assert!(!machine.runner.wait().unwrap().success());
        machine.assert_nothing_is_left();
    }
}

#[test]
fn a_program_that_cannot_start_is_reported() {
    let mut machine = TestMachine::start_with(&tiny_kernel::printing("up"), |orders| {
        orders["maker"]["Qemu"]["qemu"] = "/nowhere/qemu".into()
    });
    let report = machine.report();
    assert!(report.contains("start /nowhere/qemu") && report.contains("No such file"), "{report}");
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

#[test]
fn a_run_folder_may_have_a_long_path() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    assert!(machine.run_dir.as_os_str().len() > 108, "{}", machine.run_dir.display());
    machine.read_console_until("up");
    drop(machine.life_line.take());
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

#[test]
fn a_console_flood_that_nobody_reads_stops_the_guest_and_not_the_end() {
    let mut machine = TestMachine::start(&tiny_kernel::flooding());
    machine.read_console_until("xxxx");
    let console = machine.runner.stdout.as_ref().unwrap();
    // The page that has been read from in part takes no more bytes.
    let full = fcntl(console, FcntlArg::F_GETPIPE_SZ).unwrap().unsigned_abs().saturating_sub(4096);
    processes::wait_until("the pipe is full", || ioctl_fionread(console).unwrap() >= full.into());
    drop(machine.life_line.take());
    assert!(machine.runner.wait().unwrap().success());
    machine.assert_nothing_is_left();
}

#[test]
fn a_program_that_is_taken_over_reaches_nothing_beyond_its_machine() {
    let mounted = "mount -t tmpfs tmpfs /usr/share";
    let machine = TestMachine::start_after(Some(mounted), &tiny_kernel::printing("up"), |orders| {
        let run_dir = PathBuf::from(orders["run_dir"].as_str().unwrap());
        let program = run_dir.join("taken_over");
        fs::write(&program, include_str!("machines/taken_over.py")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        orders["maker"]["Qemu"]["vhost_device_vsock"] = program.to_str().into();
    });
    let tried = machine.run_dir.join("tried");
    processes::wait_until("the program has tried it all", || tried.exists());
    let tried: serde_json::Value = serde_json::from_slice(&fs::read(tried).unwrap()).unwrap();
    let expected = serde_json::json!({
        "its number": 1,
        "make a user namespace": "EPERM",
        "make it where no filter sees it": "ENOSYS",
        "signal itself": "done",
        "signal everybody": "EPERM",
        "signal a process": "EPERM",
        "signal a thread": "EPERM",
        "signal with a value": "EPERM",
        "signal by descriptor": "EPERM",
        "take a descriptor": "EPERM",
        "see its own limits": "done",
        "limit a process": "EPERM",
        "use io_uring": "EPERM",
        "trace": "EPERM",
        "trace by the x32 interface": "EPERM",
        "make a folder": "EPERM",
        "make a folder below one": "EPERM",
        "make a node": "EPERM",
        "make a node below a folder": "EPERM",
        "make a symbolic link": "EPERM",
        "make a symbolic link below a folder": "EPERM",
        "make a hard link": "EPERM",
        "make a hard link below a folder": "EPERM",
        "write below what is read-only": "EROFS",
    });
    assert_eq!(tried, expected);
}

#[test]
fn a_machine_whose_namespaces_cannot_be_had_any_more_does_not_start() {
    let used_up = "echo 0 >/proc/sys/user/max_user_namespaces";
    let mut machine = TestMachine::start_after(Some(used_up), &tiny_kernel::printing("up"), |_| {});
    let report = machine.report();
    assert!(report.contains("enter a user namespace") && report.contains("No space left"), "{report}");
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

struct TestMachine {
    _folder: TempDir,
    run_dir: PathBuf,
    runner: Child,
    life_line: Option<UnixStream>,
}

impl TestMachine {
    fn start(kernel: &[u8]) -> Self {
        Self::start_with(kernel, |_| {})
    }

    fn start_with(kernel: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Self {
        Self::start_after(None, kernel, change)
    }

    /// `script` changes the host that the runner sees, as root of a user and a mount namespace.
    fn start_after(script: Option<&str>, kernel: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("a-folder-with-a-name-of-fifty-letters-for-long-paths".repeat(2)).join("vm");
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(run_dir.join("initramfs"), [0; 512]).unwrap();
        for disk in ["image", "scratch"] {
            fs::File::create(run_dir.join(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::write(folder.path().join("vmlinuz"), kernel).unwrap();
        let runner = env!("CARGO_BIN_EXE_waggle");
        let may_have_namespaces = Command::new(runner).args(["runner", "confinement"]).status().unwrap().success();
        let mut orders = serde_json::json!({
            "run_dir": run_dir,
            "namespaces": if may_have_namespaces { "Own" } else { "Shared" },
            "machine": { "cpus": 1, "memory_mib": 64, "image": "image", "scratch": "scratch" },
            "maker": { "Qemu": {
                "qemu": processes::qemu(),
                "vhost_device_vsock": processes::vhost_device_vsock(),
                "accelerator": { "Emulation": { "tsc_khz": 2_000_000 } },
                "kernel": folder.path().join("vmlinuz"),
                "initramfs": "initramfs",
                "log_level": 0,
            } },
        });
        change(&mut orders);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(processes::WAIT_MAX)).unwrap();
        let mut command = Command::new(script.map_or(runner, |_| "unshare"));
        if let Some(script) = script {
            let script = format!("{script} && exec \"$@\"");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", &script, "sh", runner]);
        }
        command
            .args(["runner", "machine"])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let runner = command.spawn().unwrap();
        drop(command);
        writeln!(&ours, "{orders}").unwrap();
        Self { _folder: folder, run_dir, runner, life_line: Some(ours) }
    }

    /// The programs that work in the run folder, without the runner.
    fn programs(&self) -> Vec<(String, Pid)> {
        let runner = i32::try_from(self.runner.id()).ok().and_then(Pid::from_raw);
        processes::working_in(&self.run_dir).into_iter().filter(|(_, pid)| Some(*pid) != runner).collect()
    }

    fn read_console_until(&mut self, text: &str) {
        let console = self.runner.stdout.as_mut().unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(text.as_bytes()) {
            assert_eq!(console.read(&mut byte).unwrap(), 1, "console ended: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    }

    fn report(&mut self) -> String {
        let mut report = String::new();
        self.life_line.as_mut().unwrap().read_to_string(&mut report).unwrap();
        report
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.programs(), []);
        assert!(!self.run_dir.exists());
    }
}

impl Drop for TestMachine {
    fn drop(&mut self) {
        drop(self.life_line.take());
        let _ = self.runner.wait();
    }
}
