// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle serve`: reads what there is, builds the server, serves, and ends it when it is told to.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::timeout;

use super::{announce, open_machines, signals::End, token_reader::TokenReader};
use crate::{
    causes::chain,
    config::{self, Folders, PullImages, Settings, process_variable},
    domain::{image::ImageRef, runtime::ByRuntime},
    http::{self, Check},
    images::cache::{ImageStore, Resolve},
    machines::Vms,
    mcp,
    server::Waggle,
};

/// What the environments have not ended by themselves in the server's own time is ended within this.
const MACHINES_CLOSE: Duration = Duration::from_secs(3);

/// Serves until a signal says to end, or the input of a server that speaks to its starter ends.
///
/// # Errors
/// What stands in the way of a start; each says what to do.
pub(super) async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    for warning in config::warnings(&process_variable) {
        tracing::warn!("{warning}");
    }
    let tokens = settings.access.auth_tokens_file.clone().map(TokenReader::open).transpose()?;
    // A second server on the same address must not touch the first one's folders.
    let listener = match settings.access.stdio {
        true => None,
        false => Some(http::bind(settings.listen_addr).await?),
    };
    let mut end = End::new()?;
    let folders = Folders::of(settings, &process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let (machines, store) = tokio::select! {
        opened = open_machines::open(settings, &folders) => opened?,
        () = end.wanted() => return Ok(()),
    };
    let machines = Arc::new(machines);
    let mut server = Waggle::start(settings, images.clone(), Arc::<Vms>::clone(&machines));
    let served = match listener {
        Some(listener) => {
            let checks = checks(&images, machines.kernel().to_owned());
            let address = server.listen(listener, tokens.as_ref().map(TokenReader::now), checks)?;
            let backend = machines.backend().to_string();
            announce::announce(address, &images, &backend)?;
            tell_system(&[NotifyState::Ready, NotifyState::Status(&format!("serves MCP on {address}; {backend}"))]);
            tokio::select! {
                () = end.wanted() => {}
                () = look_after(&store, &images, settings.pull_images) => {}
            }
            Ok(())
        }
        None => {
            let (input, output) = mcp::standard_streams();
            tokio::select! {
                spoken = server.converse(input, output) => spoken,
                () = end.wanted() => Ok(()),
                () = look_after(&store, &images, settings.pull_images) => Ok(()),
            }
        }
    };
    tracing::info!("shutting down");
    tell_system(&[NotifyState::Stopping]);
    server.shut_down().await;
    if timeout(MACHINES_CLOSE, machines.close()).await.is_err() {
        tracing::error!("machines have not ended in time");
    }
    Ok(served?)
}

/// Tells systemd how the server is, where that has started it (sd_notify(3)).
fn tell_system(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told how the server is");
    }
}

/// Pulls images if they are to be there before anybody asks for them, and removes old ones, for ever.
async fn look_after(store: &ImageStore, images: &ByRuntime<ImageRef>, when: PullImages) {
    let pull = async {
        if when == PullImages::OnDemand {
            return;
        }
        for image in [&images.python, &images.node, &images.shell] {
            let name = image.to_string();
            match store.prepare_with(image, Resolve::Always, &|_| {}).await {
                Ok(_) => tracing::info!(image = name, "an image is ready"),
                Err(fault) => {
                    let error = chain(&*fault);
                    tracing::warn!(image = name, error, "an image could not be pulled at the start");
                }
            }
        }
    };
    tokio::join!(pull, store.evict_regularly());
}

/// What `/readyz` looks at. The back end was found to work at the start, or there would be no server.
fn checks(images: &ByRuntime<ImageRef>, kernel: PathBuf) -> Vec<Check> {
    let images = [images.python.clone(), images.node.clone(), images.shell.clone()];
    vec![
        Check { name: "images", look: Box::new(move || images.iter().try_for_each(image_is_there)) },
        Check { name: "kernel", look: Box::new(move || is_there(&kernel)) },
    ]
}

/// Whether an environment could be made of the image.
///
/// # Errors
/// What is missing.
pub(super) fn image_is_there(image: &ImageRef) -> Result<(), String> {
    match image {
        ImageRef::Layout(layout) => is_there(&layout.path().join("oci-layout")),
        ImageRef::Archive(archive) => is_there(archive.path()),
        // It is in the cache, or can be pulled, or cannot: whoever creates an environment hears which.
        ImageRef::Registry(_) => Ok(()),
    }
}

fn is_there(path: &Path) -> Result<(), String> {
    path.metadata().map(|_| ()).map_err(|fault| format!("failed to find {}: {fault}", path.display()))
}
