// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts machines with the real programs and with kernels of a few instructions. A failed boot and a cancelled start
//! must remove all processes and files. Only the end-to-end tests boot Linux.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where its preparation fails"
)]

#[path = "machines/log.rs"]
mod log;
#[path = "machines/oci_layout.rs"]
mod oci_layout;
#[path = "machines/processes.rs"]
mod processes;
#[path = "machines/tiny_kernel.rs"]
mod tiny_kernel;

use std::{
    error::Error,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::mpsc;
use waggle::{
    domain::{
        defences::Relaxed,
        environment_id::EnvironmentId,
        machine::{MachineSource, MachineSpec, Machines, StartFault},
        principal::Principal,
        stage::Stage,
    },
    machines::{OpenFault, TemplateSettings, VmSettings, Vms, WantedBackend, disks::Disks},
    network::Gateway,
};
use waggle_images::{cache::ImageStore, reference::PullRights};
use waggle_shared::disk_reserve::DiskReserve;

/// Boot timeout of machines whose start must end before the timeout.
const BOOT_TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn silent_guest_fails_after_the_boot_timeout() {
    let host = TestHost::open(&tiny_kernel::printing("idle")).await;
    let started = Instant::now();
    let within = Duration::from_millis(800);
    let fault = host.fails(within).await;
    assert_eq!(fault.stage, Stage::Boot);
    assert_eq!(fault.source.to_string(), "the agent did not connect within 0.8 s");
    assert!(started.elapsed() < within + Duration::from_secs(5), "{:?}", started.elapsed());
    host.assert_nothing_is_left();
}

#[tokio::test]
async fn kernel_panic_fails_at_once_even_if_the_machine_keeps_running() {
    let host = TestHost::open(&tiny_kernel::printing("Kernel panic - not syncing: no init\n")).await;
    let started = Instant::now();
    assert_eq!(host.fails(BOOT_TIMEOUT).await.source.to_string(), "the guest's kernel panicked");
    assert!(started.elapsed() < BOOT_TIMEOUT / 2, "{:?}", started.elapsed());
    host.assert_nothing_is_left();
}

#[tokio::test]
async fn last_console_lines_are_logged_without_control_characters() {
    let written = log::capture(tracing::Level::INFO);
    let host =
        TestHost::open(&tiny_kernel::printing("first \x1b[2Jline\nKernel panic - not syncing: bees gone\n")).await;
    host.fails(BOOT_TIMEOUT).await;
    let written = written.text();
    assert!(written.contains("a machine failed"), "{written}");
    assert!(written.contains("Kernel panic - not syncing: bees gone"), "{written}");
    assert!(written.contains("u{1b}[2Jline") && !written.contains('\x1b'), "{written}");
}

#[tokio::test]
async fn console_flood_does_not_delay_the_boot_timeout() {
    let host = TestHost::open(&tiny_kernel::flooding()).await;
    assert_eq!(host.fails(Duration::from_secs(1)).await.stage, Stage::Boot);
    host.assert_nothing_is_left();
}

#[tokio::test]
async fn killed_program_fails_the_start_and_is_named() {
    for (program, expected) in [("qemu-system-x86_64", "qemu-system-x86_64 ended"), ("waggle", "the runner ended")] {
        let host = TestHost::open(&tiny_kernel::printing("idle")).await;
        let data = host.folder.path().canonicalize().unwrap();
        let killer = tokio::task::spawn_blocking(move || {
            processes::wait_until("QEMU runs", || has(&data, "qemu-system-x86"));
            kill_process(processes::named(&processes::working_in(&data), program), Signal::KILL).unwrap();
        });
        let fault = host.fails(BOOT_TIMEOUT).await.source.to_string();
        killer.await.unwrap();
        assert!(fault.contains(expected) && fault.contains("signal: 9"), "{program}: {fault}");
        host.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn cancelled_start_leaves_nothing() {
    let host = TestHost::open(&tiny_kernel::printing("idle")).await;
    let (stage_sender, mut stages) = mpsc::channel(8);
    let spec = host.spec(BOOT_TIMEOUT);
    let report = |stage| stage_sender.try_send(stage).unwrap();
    let mut start = host.vms.start(&spec, &report, Box::pin(std::future::pending()));
    tokio::select! {
        _ = &mut start => panic!("the start ended before its cancellation"),
        () = async { while stages.recv().await != Some(Stage::Boot) {} } => {}
    }
    drop(start);
    host.vms.close().await;
    host.assert_nothing_is_left();
}

#[tokio::test]
async fn closing_cancels_running_starts() {
    let host = TestHost::open(&tiny_kernel::printing("idle")).await;
    let vms = Arc::clone(&host.vms);
    let data = host.folder.path().canonicalize().unwrap();
    let closing = tokio::spawn(async move {
        let wait = move || processes::wait_until("QEMU runs", || has(&data, "qemu-system-x86"));
        tokio::task::spawn_blocking(wait).await.unwrap();
        vms.close().await;
    });
    assert_eq!(host.fails(BOOT_TIMEOUT).await.source.to_string(), "the start was cancelled");
    closing.await.unwrap();
    host.assert_nothing_is_left();
}

#[tokio::test]
async fn missing_parts_are_named_before_any_machine_starts() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let no_qemu = VmSettings { qemu: "no-such-qemu".into(), ..settings.clone() };
    let fault = open(folder.path(), no_qemu).await.unwrap_err().source().unwrap().to_string();
    assert!(fault.contains("no-such-qemu") && fault.contains("apt-get install qemu-system-x86"), "{fault}");
    let fault = open(folder.path(), settings).await.unwrap_err().source().unwrap().to_string();
    assert!(fault.contains("vmlinux, which WAGGLE_KERNEL names; it must name a vmlinux"), "{fault}");
}

/// A data folder with a small image, and the [`Vms`] that use it.
struct TestHost {
    folder: TempDir,
    vms: Arc<Vms>,
}

impl TestHost {
    async fn open(kernel: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vmlinux"), kernel).unwrap();
        oci_layout::write(&folder.path().join("image"));
        let vms = open(folder.path(), settings(folder.path())).await.unwrap();
        Self { folder, vms: Arc::new(vms) }
    }

    fn spec(&self, boot_timeout: Duration) -> MachineSpec {
        MachineSpec {
            id: EnvironmentId::random(),
            owner: Principal::local(),
            image: format!("oci:{}:latest", self.folder.path().join("image").display()).parse().unwrap(),
            source: MachineSource::Image,
            pull_rights: PullRights::Operator,
            cpus: 1,
            memory_mib: 64,
            disk_mib: 16,
            boot_timeout,
            network: None,
        }
    }

    async fn fails(&self, boot_timeout: Duration) -> StartFault {
        match self.vms.start(&self.spec(boot_timeout), &|_| {}, Box::pin(std::future::pending())).await {
            Ok(_) => panic!("the machine started although its guest has no agent"),
            Err(fault) => fault,
        }
    }

    fn assert_nothing_is_left(&self) {
        let run = self.folder.path().canonicalize().unwrap().join("machines");
        processes::wait_until("the programs have ended", || processes::working_in(&run).is_empty());
        let server = fs::read_dir(&run).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap();
        // The server's own marker file stays.
        let left = fs::read_dir(server.path()).unwrap().flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(left.count(), 0);
    }
}

async fn open(data: &Path, settings: VmSettings) -> Result<Vms, OpenFault> {
    Vms::open(settings, ImageStore::open(data.join("cache")).unwrap(), Disks::open(data).unwrap()).await
}

fn settings(data: &Path) -> VmSettings {
    VmSettings {
        data_dir: data.to_owned(),
        reserve: DiskReserve::default(),
        backend: WantedBackend::Qemu,
        firmware: None,
        log_level: 0,
        kernel: Some(data.join("vmlinux")),
        kernel_arguments: None,
        qemu: processes::qemu(),
        gateway: Arc::new(Gateway::new(None, 512)),
        ca_bundle: String::new(),
        relaxed: Relaxed::default(),
        templates: TemplateSettings::NONE,
        runner: env!("CARGO_BIN_EXE_waggle").into(),
    }
}

fn has(data: &Path, name: &str) -> bool {
    processes::working_in(data).iter().any(|(found, _)| found == name)
}
