// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Machines, and a server with a client that reuses its connection.

use std::{ffi::OsString, path::Path, sync::Arc, time::Duration};

use rmcp::{
    RoleClient, ServiceExt as _,
    model::{CallToolRequestParams, CallToolResult},
    service::RunningService,
    transport::StreamableHttpClientTransport,
};
use serde_json::Value;
use tempfile::TempDir;
use waggle::{
    cli::{self, Command},
    config::Settings,
    domain::{
        defences::Relaxed,
        environment_id::EnvironmentId,
        machine::{Machine, MachineSource, MachineSpec, Machines},
        principal::Principal,
        runtime::ByRuntime,
    },
    http,
    machines::{TemplateSettings, VmSettings, Vms, WantedBackend, disks::Disks},
    network::{Gateway, Rates},
    server::Waggle,
};
use waggle_images::{
    cache::ImageStore,
    reference::{ImageRef, PullRights},
};
use waggle_shared::disk_reserve::DiskReserve;

use crate::places::{firmware, program};

/// Boot timeout; a boot takes 3 s under emulation.
const BOOT_MAX: Duration = Duration::from_secs(60);

/// A source of machines with its own data folder.
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) vms: Arc<Vms>,
}

impl Site {
    pub(crate) async fn open() -> Self {
        // The sockets in this folder have long paths, and Linux limits the path of a socket to 107 bytes.
        let folder = tempfile::Builder::new().prefix("wb-").tempdir_in("/tmp").unwrap();
        let settings = VmSettings {
            data_dir: folder.path().to_owned(),
            reserve: DiskReserve::default(),
            backend: WantedBackend::Qemu,
            firmware: Some(firmware()),
            log_level: 0,
            kernel: None,
            kernel_arguments: None,
            qemu: program("qemu-system-x86_64"),
            // The benchmarks measure the cost of a connection, so no rate may limit them.
            gateway: Arc::new(Gateway::new(None, 512).with_rates(Rates { flows: 100_000, lookups: 100_000 })),
            ca_bundle: String::new(),
            relaxed: Relaxed::default(),
            templates: TemplateSettings::NONE,
            runner: VmSettings::THIS_BINARY.into(),
        };
        let images = ImageStore::open(folder.path().join("images")).unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let vms = Arc::new(Vms::open(settings, images, disks).await.unwrap());
        Self { folder, vms }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a machine of the server's default size.
    pub(crate) async fn start(&self, image: &ImageRef) -> Arc<dyn Machine> {
        let settings = settings();
        let spec = MachineSpec {
            id: EnvironmentId::random(),
            owner: Principal::local(),
            image: image.clone(),
            source: MachineSource::Image,
            pull_rights: PullRights::Operator,
            cpus: settings.default_cpus,
            memory_mib: settings.default_memory_mb,
            disk_mib: settings.default_disk_mb,
            boot_timeout: BOOT_MAX,
            network: None,
        };
        self.vms.start(&spec, &|_stage| {}, Box::pin(std::future::pending())).await.unwrap()
    }
}

/// A server and its client.
pub(crate) struct Served {
    waggle: Waggle,
    client: RunningService<RoleClient, ()>,
}

impl Served {
    pub(crate) async fn start(site: &Site, image: &ImageRef) -> Self {
        let settings = settings();
        let listener = http::bind(settings.listen_addr).await.unwrap();
        let images = ByRuntime { python: image.clone(), node: image.clone(), shell: image.clone() };
        let mut waggle = Waggle::start(&settings, images, Arc::<Vms>::clone(&site.vms));
        let url = format!("http://{}/mcp", waggle.listen(listener, None, Vec::new()).unwrap());
        let client = ().serve(StreamableHttpClientTransport::from_uri(url)).await.unwrap();
        Self { waggle, client }
    }

    pub(crate) async fn call(&self, tool: &'static str, arguments: Value) -> CallToolResult {
        let arguments = arguments.as_object().unwrap().clone();
        let result = self.client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments)).await.unwrap();
        assert_eq!(result.is_error, Some(false), "{result:?}");
        result
    }

    pub(crate) async fn end(self) {
        self.client.cancel().await.unwrap();
        self.waggle.shut_down().await;
    }
}

fn settings() -> Settings {
    let words = ["waggle", "serve", "--listen-addr", "127.0.0.1:0"].map(OsString::from);
    let command = cli::parse(words, &|_variable| None).unwrap().command;
    let Command::Serve(settings) = command else { panic!("expected serve: {command:?}") };
    *settings
}
