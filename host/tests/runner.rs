// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests the runner with its real programs. After any process ends, no process or file remains, and the report names
//! the cause.
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
    ffi::CStr,
    fs::{self, Permissions},
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileExt, PermissionsExt, chown},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::ioctl_fionread,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Signal, getuid, kill_process},
};
use tempfile::TempDir;
use waggle_protocol::{CALL_PORT, EGRESS_PORT};

/// The id of an ordinary user that every system has.
const NOBODY: u32 = 65_534;

#[test]
fn death_of_the_host_ends_everything() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    machine.read_console_until("up");
    // A process that stands in for the host gets the lifeline and is killed with SIGKILL.
    let lifeline = OwnedFd::from(machine.lifeline.take().unwrap());
    let mut host = Command::new("sleep").arg("1000").stdin(lifeline).spawn().unwrap();
    assert_eq!(machine.programs().len(), 1);
    host.kill().unwrap();
    host.wait().unwrap();
    assert!(machine.runner.wait().unwrap().success());
    machine.assert_nothing_is_left();
}

#[test]
fn death_of_the_runner_ends_its_program() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    machine.read_console_until("up");
    machine.runner.kill().unwrap();
    machine.runner.wait().unwrap();
    processes::wait_until("the program has ended", || machine.programs().is_empty());
}

#[test]
fn report_names_the_program_that_ended_and_its_status() {
    let name = "qemu-system-x86_64";
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    machine.read_console_until("up");
    kill_process(processes::named(&machine.programs(), name), Signal::KILL).unwrap();
    let report = machine.report();
    assert!(report.contains(name) && report.contains("signal: 9"), "{report}");
    assert!(!machine.runner.wait().unwrap().success());
    machine.assert_nothing_is_left();
}

#[test]
fn program_that_cannot_start_is_reported() {
    let mut machine = TestMachine::start_with(&tiny_kernel::printing("up"), |orders| {
        orders["maker"]["Qemu"]["qemu"] = "/nowhere/qemu".into()
    });
    let report = machine.report();
    assert!(report.contains("start /nowhere/qemu") && report.contains("No such file"), "{report}");
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

#[test]
fn run_folder_can_have_a_long_path() {
    let mut machine = TestMachine::start(&tiny_kernel::printing("up"));
    assert!(machine.run_dir.as_os_str().len() > 108, "{}", machine.run_dir.display());
    machine.read_console_until("up");
    drop(machine.lifeline.take());
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

#[test]
fn unread_console_flood_does_not_block_the_end() {
    let mut machine = TestMachine::start(&tiny_kernel::flooding());
    machine.read_console_until("xxxx");
    let console = machine.runner.stdout.as_ref().unwrap();
    // One page may stay partly empty, because the kernel does not refill a page that has been read in part.
    let full = fcntl(console, FcntlArg::F_GETPIPE_SZ).unwrap().unsigned_abs().saturating_sub(4096);
    processes::wait_until("the pipe is full", || ioctl_fionread(console).unwrap() >= full.into());
    drop(machine.lifeline.take());
    assert!(machine.runner.wait().unwrap().success());
    machine.assert_nothing_is_left();
}

#[test]
fn compromised_program_is_confined_to_its_machine() {
    let script = "mount -t tmpfs tmpfs /usr/share && touch /usr/share/written";
    let tried = tried_by_a_compromised_program(&Start { script: Some(script), ..Start::default() });
    let mut expected = other_results_than_eperm();
    expected["its process id"] = 1.into();
    expected["write to a mount below a read-only folder"] = "EROFS".into();
    expected["read the memory of its parent"] = "ENOENT".into();
    expected["open the image again, for writing"] = "EROFS".into();
    expected["read a file of the host"] = "ENOENT".into();
    assert_eq!(without_eperm(tried), expected);
}

#[test]
fn compromised_program_without_namespaces_is_confined_to_its_files() {
    let mut tried = tried_by_a_compromised_program(&Start { namespaces: Some("Shared"), ..Start::default() });
    let id = tried.remove("its process id").unwrap();
    assert!(id.as_u64() > Some(1), "{id}");
    let mut expected = other_results_than_eperm();
    expected["write to a mount below a read-only folder"] = "ENOENT".into();
    expected["read the memory of its parent"] = "EACCES".into();
    expected["open the image again, for writing"] = "EACCES".into();
    expected["read a file of the host"] = "EACCES".into();
    expected["write to another file of its folder"] = "EACCES".into();
    assert_eq!(without_eperm(tried), expected, "this test needs a kernel with Landlock");
}

#[test]
fn threads_of_a_compromised_program_are_limited() {
    let tried = tried_by_a_compromised_program(&Start { is_ordinary_user: true, ..Start::default() });
    assert_eq!(tried["threads"], "some");
}

/// Runs a program in QEMU's place, and returns what it tried with the results.
fn tried_by_a_compromised_program(start: &Start<'_>) -> serde_json::Map<String, serde_json::Value> {
    TestMachine::start_compromised(start).results()
}

/// The content of memory that several machines use.
fn template_memory() -> Vec<u8> {
    let mut content = b"template".repeat(1 << 10);
    content.resize(64 << 20, 0);
    content
}

/// The tried operations that had another result than EPERM.
fn without_eperm(mut tried: serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
    // The kernel does not limit the threads of the real root.
    tried.remove("threads").unwrap();
    tried.into_iter().filter(|(_, result)| result != "EPERM").collect()
}

#[test]
fn compromised_program_cannot_change_memory_that_other_machines_use() {
    let machine = TestMachine::start_compromised(&Start { is_memory_shared: true, ..Start::default() });
    let tried = machine.results();
    let of_memory: serde_json::Value = tried.clone().into_iter().filter(|(name, _)| name.contains("memory")).collect();
    let mut expected = serde_json::json!({
        "map the memory, shared and writable": "EPERM",
        "write to the memory": "EPERM",
        "make the memory larger": "EFBIG",
        "make the memory smaller": "EPERM",
        // The filter lets the call succeed without an effect.
        "free a part of the memory": "done",
        "allocate memory beyond its end": "EFBIG",
    });
    for name in [
        "read the memory of its parent",
        "share memory with other processes",
        "create a file in memory",
        "use memory beyond the guest's and its own",
    ] {
        expected[name] = tried[name].clone();
    }
    assert_eq!(of_memory, expected);
    let mut content = vec![0; 64 << 20];
    machine.memory.read_exact_at(&mut content, 0).unwrap();
    assert!(content == template_memory());
}

fn other_results_than_eperm() -> serde_json::Value {
    serde_json::json!({
        "create a user namespace with clone3": "ENOSYS",
        "signal itself": "done",
        "read its own limits": "done",
        "write to another file of its folder": "EROFS",
        "write to its disk": "done",
        "make a call that is newer than the filter": "ENOSYS",
        "make its disk larger": "EFBIG",
        "write beyond its disk": "EFBIG",
        "free space of its disk": "done",
        "create a pair of Unix sockets": "done",
        "use memory beyond the guest's and its own": "ENOMEM",
        "last descriptor": 255,
        "map the memory, shared and writable": "done",
        "write to the memory": "done",
        "free a part of the memory": "done",
        // The limit of the size of files is that of the disk. If the memory is smaller, its seals have the same effect.
        "make the memory larger": "EFBIG",
        "allocate memory beyond its end": "EFBIG",
    })
}

#[test]
fn machine_does_not_start_without_the_expected_namespaces() {
    let script = "echo 0 >/proc/sys/user/max_user_namespaces";
    let start = Start { script: Some(script), ..Start::default() };
    let mut machine = TestMachine::start_as(&start, &tiny_kernel::printing("up"), |_| {});
    let report = machine.report();
    assert!(report.contains("enter a user namespace") && report.contains("No space left"), "{report}");
    machine.runner.wait().unwrap();
    machine.assert_nothing_is_left();
}

/// The way to start a runner.
#[derive(Default)]
struct Start<'a> {
    /// Runs before the runner, as root in new user and mount namespaces that the runner shares.
    script: Option<&'a str>,
    /// Whether the machine has its own namespaces; by default, if this host allows them.
    namespaces: Option<&'a str>,
    /// Whether the runner runs as an ordinary user even if the test runs as root.
    is_ordinary_user: bool,
    /// Whether the machine starts from a snapshot whose memory other machines use.
    is_memory_shared: bool,
}

struct TestMachine {
    _folder: TempDir,
    run_dir: PathBuf,
    runner: Child,
    lifeline: Option<UnixStream>,
    memory: fs::File,
    /// Accept the connections of the machine's ports.
    _links: [UnixListener; 2],
}

impl TestMachine {
    fn start(kernel: &[u8]) -> Self {
        Self::start_with(kernel, |_| {})
    }

    fn start_with(kernel: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Self {
        Self::start_as(&Start::default(), kernel, change)
    }

    fn start_as(start: &Start<'_>, kernel: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("a-folder-with-a-name-of-fifty-letters-for-long-paths".repeat(2)).join("vm");
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(run_dir.join("initramfs"), [0; 512]).unwrap();
        for disk in ["image", "scratch"] {
            fs::File::create(run_dir.join(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        // The path of the sockets would be too long.
        let open_dir = fs::File::open(&run_dir).unwrap();
        let socket = |port| format!("/proc/self/fd/{}/link_{port}", open_dir.as_raw_fd());
        let links = [CALL_PORT, EGRESS_PORT].map(|port| UnixListener::bind(socket(port)).unwrap());
        fs::write(folder.path().join("vmlinux"), kernel).unwrap();
        let runner = env!("CARGO_BIN_EXE_waggle");
        let has_namespaces = Command::new(runner).args(["runner", "confinement"]).status().unwrap().success();
        let mut orders = serde_json::json!({
            "run_dir": run_dir,
            "namespaces": start.namespaces.unwrap_or(if has_namespaces { "Own" } else { "Shared" }),
            "machine": { "cpus": 1, "memory_mib": 64, "image": "image", "scratch": "scratch" },
            "maker": { "Qemu": {
                "qemu": processes::qemu(),
                "accelerator": { "Emulation": { "tsc_khz": 2_000_000 } },
                "has_network": true,
                "start": { "Boot": {
                    "kernel": folder.path().join("vmlinux"),
                    "kernel_arguments": null,
                    "initramfs": "initramfs",
                } },
                "log_level": 0,
            } },
        });
        let memory = file_in_memory(c"waggle-memory", &[], SealFlags::SHRINK | SealFlags::GROW);
        let mut files = vec![memory.as_fd()];
        let all_seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        let devices = file_in_memory(c"waggle-devices", b"state", all_seals);
        if start.is_memory_shared {
            memory.write_all_at(&template_memory(), 0).unwrap();
            fcntl_add_seals(&memory, all_seals).unwrap();
            orders["maker"]["Qemu"]["start"] = serde_json::json!({ "Snapshot": { "is_shared": true } });
            files.push(devices.as_fd());
        }
        change(&mut orders);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(processes::WAIT_MAX)).unwrap();
        let mut command = Command::new(start.script.map_or(runner, |_| "unshare"));
        if start.is_ordinary_user && getuid().is_root() {
            give_to_nobody(folder.path());
            command.uid(NOBODY).gid(NOBODY);
        }
        if let Some(script) = start.script {
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
        send_orders(&ours, &orders, &files);
        drop(files);
        Self { _folder: folder, run_dir, runner, lifeline: Some(ours), memory, _links: links }
    }

    /// Runs a program in QEMU's place that tries what a compromised QEMU could try.
    fn start_compromised(start: &Start<'_>) -> Self {
        Self::start_as(start, &tiny_kernel::printing("up"), |orders| {
            let run_dir = PathBuf::from(orders["run_dir"].as_str().unwrap());
            let program = run_dir.join("compromised");
            fs::write(&program, include_str!("machines/compromised.py")).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
            orders["maker"]["Qemu"]["qemu"] = program.to_str().into();
        })
    }

    /// Returns the operations that the program has tried, with the results.
    fn results(&self) -> serde_json::Map<String, serde_json::Value> {
        let scratch = self.run_dir.join("scratch");
        let tried = || Some(fs::read(&scratch).unwrap().split(|byte| *byte == b'\n').next()?.to_owned());
        let tried = || serde_json::from_slice::<serde_json::Map<_, _>>(&tried()?).ok();
        processes::wait_until("the program has written its results", || tried().is_some());
        tried().unwrap()
    }

    /// The processes whose working folder is the run folder, without the runner.
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
        self.lifeline.as_mut().unwrap().read_to_string(&mut report).unwrap();
        report
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.programs(), []);
        assert!(!self.run_dir.exists());
    }
}

fn file_in_memory(name: &CStr, content: &[u8], seals: SealFlags) -> fs::File {
    let file = fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(64 << 20).unwrap();
    file.write_all_at(content, 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

fn send_orders(lifeline: &UnixStream, orders: &serde_json::Value, files: &[BorrowedFd<'_>]) {
    let line = format!("{orders}\n");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    assert!(attached.push(SendAncillaryMessage::ScmRights(files)));
    let sent = sendmsg(lifeline, &[IoSlice::new(line.as_bytes())], &mut attached, SendFlags::empty()).unwrap();
    assert_eq!(sent, line.len());
}

/// Changes the owner of a folder and of everything in it.
fn give_to_nobody(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_to_nobody(&entry.unwrap().path()));
    }
}

impl Drop for TestMachine {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.runner.wait();
    }
}
