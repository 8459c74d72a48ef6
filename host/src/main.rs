// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The `waggle` binary: reads its settings, builds the server, serves, and ends it when it is told to.

mod announce;

use std::{
    error::Error,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::CommandFactory as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::timeout,
};
use waggle::{
    config::{self, Backend, Command, CommandArguments, Folders, Generated, Settings, process_variable},
    domain::{image::ImageRef, runtime::ByRuntime},
    http::{self, Check},
    infra::{disks::Disks, images::ImageStore, vmm},
    mcp,
    server::Waggle,
    service::fault::chain,
    telemetry,
};

/// What the environments have not ended by themselves in the server's own time is ended within this.
const MACHINES_CLOSE: Duration = Duration::from_secs(3);

/// What still blocks in the end is left to end with the process after this.
const BLOCKING_END: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // A runner is single-threaded: nothing may start a thread before this.
    if let Some(code) = vmm::run_if_runner() {
        return code;
    }
    let arguments = match config::parse(std::env::args_os(), &process_variable) {
        Ok(arguments) => arguments,
        Err(answer) => {
            // The answers to --help and --version come this way, too.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let _ = writeln!(io::stderr(), "waggle: {}", chain(&*fault));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: CommandArguments) -> Result<(), Box<dyn Error>> {
    match arguments.command {
        Command::Serve(settings) => {
            telemetry::start(process_variable("RUST_LOG").and_then(|filter| filter.into_string().ok()).as_deref())?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let served = runtime.block_on(serve(&settings));
            // A merge of an image or a full disk can keep a blocking thread for minutes.
            runtime.shutdown_timeout(BLOCKING_END);
            served
        }
        Command::Version => {
            let version = CommandArguments::command().render_version();
            let (commit, date) = (env!("WAGGLE_COMMIT"), env!("WAGGLE_BUILD_DATE"));
            Ok(writeln!(io::stdout(), "{} (commit {commit}, built {date})", version.trim())?)
        }
        Command::Gen { what: Generated::Settings } => Ok(io::stdout().write_all(config::settings_page().as_bytes())?),
        Command::Gen { what: Generated::Tools } => {
            Ok(writeln!(io::stdout(), "{}", serde_json::to_string_pretty(mcp::tools())?)?)
        }
    }
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    for warning in config::warnings(&process_variable) {
        tracing::warn!("{warning}");
    }
    // A second server on the same address must not touch the first one's folders.
    let listener = http::bind(settings.listen_addr).await?;
    let mut end = End::new()?;
    let folders = Folders::of(settings, &process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let machines = tokio::select! {
        opened = open_machines(settings, &folders) => Arc::new(opened?),
        () = end.wanted() => return Ok(()),
    };
    let backend = machines.backend().to_string();
    if !settings.listen_addr.ip().is_loopback() {
        tracing::warn!(address = %settings.listen_addr, "anyone who reaches this address can use the server");
    }
    let checks = checks(&images, machines.kernel().to_owned());
    let server = Waggle::start(settings, images.clone(), Arc::<vmm::Vms>::clone(&machines), checks, listener)?;
    announce::announce(server.address(), &images, &backend)?;

    end.wanted().await;
    tracing::info!("shutting down");
    server.shut_down().await;
    if timeout(MACHINES_CLOSE, machines.close()).await.is_err() {
        tracing::error!("machines have not ended in time");
    }
    Ok(())
}

async fn open_machines(settings: &Settings, folders: &Folders) -> Result<vmm::Vms, Box<dyn Error>> {
    let vm_settings = vmm::VmSettings {
        data_dir: folders.data.clone(),
        backend: match settings.backend {
            Backend::Auto => vmm::WantedBackend::Auto,
            Backend::Qemu => vmm::WantedBackend::Qemu,
            Backend::Krun => vmm::WantedBackend::Krun,
        },
        firmware: settings.firmware.clone(),
        log_level: settings.log_level,
        kernel_dir: folders.kernel.clone(),
        qemu: "qemu-system-x86_64".into(),
        vhost_device_vsock: "vhost-device-vsock".into(),
        relaxed: settings.relax.clone(),
        runner: vmm::VmSettings::THIS_BINARY.into(),
    };
    let (cache, data) = (folders.images.clone(), folders.data.clone());
    // Both wait for the locks of other servers.
    let images = spawn_blocking(move || ImageStore::open(&cache)).await??;
    let disks = spawn_blocking(move || Disks::open(&data)).await??;
    Ok(vmm::Vms::open(vm_settings, images, disks).await?)
}

/// What `/readyz` looks at. The back end was found to work at the start, or there would be no server.
fn checks(images: &ByRuntime<ImageRef>, kernel: PathBuf) -> Vec<Check> {
    let images = [images.python.clone(), images.node.clone(), images.shell.clone()];
    vec![
        Check { name: "images", look: Box::new(move || images.iter().try_for_each(image_is_there)) },
        Check { name: "kernel", look: Box::new(move || is_there(&kernel)) },
    ]
}

fn image_is_there(image: &ImageRef) -> Result<(), String> {
    match image {
        ImageRef::Layout(layout) => is_there(&layout.path().join("oci-layout")),
        ImageRef::Archive(archive) => is_there(archive.path()),
        ImageRef::Registry(_) => Err(format!(
            "{image} is in a registry, which this version cannot pull from; `./taskw images` builds images"
        )),
    }
}

fn is_there(path: &Path) -> Result<(), String> {
    path.metadata().map(|_| ()).map_err(|fault| format!("failed to find {}: {fault}", path.display()))
}

/// SIGINT and SIGTERM.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
