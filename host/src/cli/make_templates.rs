// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes the templates of the three runtimes when the server starts.

use std::{error::Error, sync::Arc};

use waggle_images::{
    cache::ImageStore,
    reference::{ImageRef, PullRights},
};

use crate::{
    config::Settings,
    domain::{
        egress::{Egress, Network},
        environment_id::EnvironmentId,
        machine::{MachineSource, MachineSpec},
        principal::Principal,
        runtime::ByRuntime,
    },
    machines::Vms,
};

/// Makes a template of each image that is on this host. Nothing is pulled.
pub(super) async fn make_templates(
    settings: &Settings,
    machines: &Vms,
    store: &ImageStore,
    images: &ByRuntime<ImageRef>,
    owner: &Principal,
) {
    for image in [&images.python, &images.node, &images.shell] {
        let is_here = match image {
            ImageRef::Layout(_) | ImageRef::Archive(_) => true,
            ImageRef::Registry(_) => store.inspect(&image.to_string()).is_ok_and(|found| !found.of_clients),
        };
        if !is_here {
            continue;
        }
        if let Err(fault) = machines.prepare_template(&spec(settings, image, owner)).await {
            let image = image.to_string();
            tracing::warn!(image, error = &fault as &dyn Error, "failed to make a template at the start");
        }
    }
}

/// Describes an environment without settings of its own.
fn spec(settings: &Settings, image: &ImageRef, owner: &Principal) -> MachineSpec {
    let size = settings.sizes().default;
    let egress = Egress::new(settings.egress.clone(), None);
    let network = (!egress.is_none()).then(|| Network { egress, on_refusal: Arc::new(|_refused| {}) });
    MachineSpec {
        id: EnvironmentId::random(),
        owner: owner.clone(),
        image: image.clone(),
        source: MachineSource::Image,
        pull_rights: PullRights::Operator,
        cpus: size.cpus,
        memory_mib: size.memory_mib,
        disk_mib: size.disk_mib,
        boot_timeout: settings.boot_timeout,
        network,
    }
}
