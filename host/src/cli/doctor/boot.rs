// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Boots a machine, runs a command in the machine, ends the machine, and measures each stage.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use waggle_images::reference::{ImageRef, PullRights};
use waggle_shared::{causes::chain, mutex::lock};

use crate::{
    cli::{
        advice::next_step,
        open_machines::{self, Opened},
        serve::check_image,
        signals::ShutdownSignals,
    },
    config::{Folders, Settings},
    domain::{
        command::Command,
        egress::{Egress, Network},
        environment_id::EnvironmentId,
        machine::{MachineSource, MachineSpec, Machines as _},
        principal::Principal,
        runtime::ByRuntime,
        stage::Stage,
    },
};

/// Timeout of the test command, long enough for an emulated machine on a busy host.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// The outcome of the boot.
#[derive(Clone, Debug)]
pub(super) enum Boot {
    /// Success, with the stages in milliseconds.
    Booted(Vec<(&'static str, u128)>),
    /// Failure, with the stages that ended, the error, and a hint.
    Failed(Vec<(&'static str, u128)>, String, Option<&'static str>),
    /// No machine was started, with the reason.
    Skipped(String),
}

/// Boots a machine from the first available image, preferably from an image on this host.
pub(super) async fn boot(
    settings: &Settings,
    folders: &Folders,
    images: &ByRuntime<ImageRef>,
    show: &(dyn Fn(&str) + Send + Sync),
) -> Boot {
    let candidates = [&images.shell, &images.python, &images.node];
    // An image on this host needs no network.
    let on_this_host = |image: &&&ImageRef| !matches!(image, ImageRef::Registry(_));
    let there = candidates.into_iter().filter(|image| check_image(image).is_ok()).collect::<Vec<_>>();
    let Some(image) = there.iter().find(on_this_host).or(there.first()) else {
        return Boot::Skipped("found no image to boot".to_owned());
    };
    let stages = Stages { show, begun: Mutex::default() };
    let outcome = life(settings, folders, image, &stages).await;
    let took = stages.took();
    match outcome {
        Ok(()) => Boot::Booted(took),
        Err(fault) => Boot::Failed(took, chain(&*fault), next_step(&*fault)),
    }
}

async fn life(
    settings: &Settings,
    folders: &Folders,
    image: &ImageRef,
    stages: &Stages<'_>,
) -> Result<(), Box<dyn Error>> {
    let mut signals = ShutdownSignals::new()?;
    stages.begin("open", "opening images and machines");
    let mut settings = settings.clone();
    // The only machine would not use a template.
    settings.templates.count = 0;
    let settings = &settings;
    let Opened { machines, data_folder: _data_folder, .. } = open_machines::open(settings, folders).await?;
    // Most of the server's machines have a network. Booting with a network detects a kernel without network support.
    let egress = Egress::new(settings.egress.clone(), None);
    let network = (!egress.is_none()).then(|| Network { egress, on_refusal: Arc::new(|_refused| {}) });
    let spec = MachineSpec {
        id: EnvironmentId::random(),
        owner: Principal::local(),
        image: image.clone(),
        source: MachineSource::Image,
        pull_rights: PullRights::Operator,
        cpus: settings.default_cpus,
        memory_mib: settings.default_memory_mb,
        disk_mib: settings.default_disk_mb,
        boot_timeout: settings.boot_timeout,
        network,
    };
    let on_stage = |stage: Stage| stages.begin(name(stage), stage.describe());
    let machine = machines.start(&spec, &on_stage, Box::pin(signals.received())).await;
    let called = match &machine {
        Ok(machine) => {
            stages.begin("command", "running a command");
            let never = Box::pin(std::future::pending());
            machine.agent().exec(nothing(), never, &mut |_, _| {}).await.map(drop).map_err(Into::into)
        }
        Err(_) => Ok(()),
    };
    stages.begin("end", "ending the machine");
    machines.close().await;
    machine.map(drop)?;
    called
}

fn nothing() -> Command {
    Command { argv: vec!["true".to_owned()], timeout: COMMAND_MAX, ..Command::default() }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Image | Stage::Pull(_) | Stage::Merge(_) => "image",
        Stage::Disks => "disks",
        Stage::Boot => "boot",
    }
}

/// The stages with their start times.
struct Stages<'a> {
    show: &'a (dyn Fn(&str) + Send + Sync),
    begun: Mutex<Vec<(&'static str, Instant)>>,
}

impl Stages<'_> {
    fn begin(&self, name: &'static str, step: &str) {
        (self.show)(step);
        let mut begun = lock(&self.begun);
        // A stage can have several steps; only the first step begins the stage.
        if begun.last().is_none_or(|(last, _)| *last != name) {
            begun.push((name, Instant::now()));
        }
    }

    /// Returns the duration of each stage, in milliseconds. A stage ends when the next stage begins; the last stage
    /// ends now.
    fn took(&self) -> Vec<(&'static str, u128)> {
        let begun = lock(&self.begun);
        let ends = begun.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
        begun.iter().zip(ends).map(|((name, from), to)| (*name, (to - *from).as_millis())).collect()
    }
}
