// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle serve`: builds the server from its settings, serves, and shuts it down on a signal.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::timeout;
use waggle_images::{
    cache::{ImageStore, Resolve},
    reference::ImageRef,
};

use super::{
    announce, disk_check,
    host_memory::{AllMachines, HostMemory},
    lasting,
    make_templates::make_templates,
    open_machines::{self, Opened},
    signals::ShutdownSignals,
    tls_reader::TlsReader,
    token_reader::TokenReader,
};
use crate::{
    config::{self, PullImages, Settings, process_variable},
    domain::{principal::Principal, runtime::ByRuntime},
    files::tls_files::TlsFiles,
    http::{self, Check},
    machines::Vms,
    mcp,
    server::Waggle,
};

/// Timeout for ending the machines that still run after the server's shutdown.
const MACHINES_CLOSE: Duration = Duration::from_secs(3);

/// Serves until a signal arrives, or with --stdio until the input ends.
///
/// # Errors
/// The reason why the server could not start. Each error says what to do.
pub(super) async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    for warning in config::warnings(&process_variable) {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = HostMemory::read().and_then(|host| AllMachines::of(settings).warning(host)) {
        tracing::warn!("{warning}");
    }
    let tokens = settings.access.auth_tokens_file.clone().map(TokenReader::open).transpose()?;
    let tls = tls_files(settings).map(TlsReader::open).transpose()?;
    // Binds the address first: a second server on the same address must not touch the folders of the first server.
    let listener = match settings.access.stdio {
        true => None,
        false => Some(http::bind(settings.listen_addr).await?),
    };
    let mut signals = ShutdownSignals::new()?;
    let folders = settings.folders(&process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let Opened { machines, images: store, data_folder: _data_folder } = tokio::select! {
        opened = open_machines::open(settings, &folders) => opened?,
        () = signals.received() => return Ok(()),
    };
    store.verify_in_background();
    let machines = Arc::new(machines);
    // With tokens, each caller has its own templates, unless they are shared.
    let owner = if settings.access.stdio { Principal::local() } else { Principal::anonymous() };
    let at_start = settings.templates.at_start && (tokens.is_none() || settings.templates.are_shared);
    let maintain = async {
        let templates = async {
            pull_images(&store, &images, settings.pull_images).await;
            if at_start {
                make_templates(settings, &machines, &store, &images, &owner).await;
            }
        };
        tokio::join!(templates, store.evict_regularly());
    };
    let lasting = lasting::open(settings, &folders).await?;
    let mut server = Waggle::start_lasting(settings, images.clone(), Arc::<Vms>::clone(&machines), lasting);
    server.set_tls(tls.as_ref().map(TlsReader::current));
    let served = match listener {
        Some(listener) => {
            let checks = checks(&images, machines.kernel().to_owned(), disk_check::check(settings, &folders));
            let address = server.listen(listener, tokens.as_ref().map(TokenReader::current), checks)?;
            let backend = machines.backend().to_string();
            if let Some(warning) = settings.access.plain_text_warning(address) {
                tracing::warn!("{warning}");
            }
            announce::announce(&announce::endpoint(&settings.access, address), &images, &backend)?;
            notify_systemd(&[NotifyState::Ready, NotifyState::Status(&format!("serving MCP on {address}; {backend}"))]);
            tokio::select! {
                () = signals.received() => {}
                () = maintain => {}
            }
            Ok(())
        }
        None => {
            let (input, output) = mcp::standard_streams();
            tokio::select! {
                spoken = server.converse(input, output) => spoken,
                () = signals.received() => Ok(()),
                () = maintain => Ok(()),
            }
        }
    };
    tracing::info!("shutting down");
    machines.stop_templates();
    notify_systemd(&[NotifyState::Stopping]);
    server.shut_down().await;
    if timeout(MACHINES_CLOSE, machines.close()).await.is_err() {
        tracing::error!("timed out ending the machines");
    }
    Ok(served?)
}

/// Returns the files of the server's certificate and key, if the server has TLS.
pub(super) fn tls_files(settings: &Settings) -> Option<TlsFiles> {
    let (certificate, key) = settings.access.tls()?;
    Some(TlsFiles { certificate: certificate.to_owned(), key: key.to_owned() })
}

/// Reports the server's state to systemd, if systemd started the server (sd_notify(3)).
fn notify_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(error = &error as &dyn Error, "failed to report the state to systemd");
    }
}

/// Pulls the images if `when` says so.
async fn pull_images(store: &ImageStore, images: &ByRuntime<ImageRef>, when: PullImages) {
    if when == PullImages::OnDemand {
        return;
    }
    for image in [&images.python, &images.node, &images.shell] {
        let name = image.to_string();
        match store.prepare_with(image, Resolve::Always, &|_| {}).await {
            Ok(_) => tracing::info!(image = name, "an image is ready"),
            Err(fault) => {
                tracing::warn!(image = name, error = &*fault as &dyn Error, "failed to pull an image at the start");
            }
        }
    }
}

/// The checks of `/readyz`. The back end was checked at the start.
fn checks(images: &ByRuntime<ImageRef>, kernel: PathBuf, disk: Check) -> Vec<Check> {
    let images = [images.python.clone(), images.node.clone(), images.shell.clone()];
    vec![
        Check { name: "images", is_required: true, run: Box::new(move || images.iter().try_for_each(check_image)) },
        Check { name: "kernel", is_required: true, run: Box::new(move || check_exists(&kernel)) },
        disk,
    ]
}

/// Checks whether an image on this host exists. An image in a registry is assumed to exist.
///
/// # Errors
/// A message with the missing path.
pub(super) fn check_image(image: &ImageRef) -> Result<(), String> {
    match image {
        ImageRef::Layout(layout) => check_exists(&layout.path().join("oci-layout")),
        ImageRef::Archive(archive) => check_exists(archive.path()),
        // The image may have to be pulled. Only the creation of an environment can show whether the pull succeeds.
        ImageRef::Registry(_) => Ok(()),
    }
}

fn check_exists(path: &Path) -> Result<(), String> {
    path.metadata().map(|_| ()).map_err(|fault| format!("failed to find {}: {fault}", path.display()))
}
