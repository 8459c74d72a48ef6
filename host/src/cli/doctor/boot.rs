// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The proof: a machine that is booted, called and ended, with the time that each stage took.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    causes::chain,
    cli::{advice::next_step, open_machines, serve::image_is_there, signals::End},
    config::{Folders, Settings},
    domain::{
        command::Command,
        egress::{Egress, Network},
        environment_id::EnvironmentId,
        image::ImageRef,
        machine::{MachineSpec, Machines as _},
        runtime::ByRuntime,
        stage::Stage,
    },
    mutex::lock,
};

/// A command that does nothing, on a machine that is emulated on a busy host.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// How the boot went.
#[derive(Clone, Debug)]
pub(super) enum Boot {
    /// All stages, in milliseconds.
    Went(Vec<(&'static str, u128)>),
    /// The stages that ended, why there are no more, and what can be done about it.
    Failed(Vec<(&'static str, u128)>, String, Option<&'static str>),
    /// No machine was started.
    NotTried(String),
}

/// Boots a machine of the first image that is there.
pub(super) async fn boot(
    settings: &Settings,
    folders: &Folders,
    images: &ByRuntime<ImageRef>,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Boot {
    let candidates = [&images.shell, &images.python, &images.node];
    // One that is on this machine needs no network.
    let on_this_machine = |image: &&&ImageRef| !matches!(image, ImageRef::Registry(_));
    let there = candidates.into_iter().filter(|image| image_is_there(image).is_ok()).collect::<Vec<_>>();
    let Some(image) = there.iter().find(on_this_machine).or(there.first()) else {
        return Boot::NotTried("there is no image to boot".to_owned());
    };
    let stages = Stages { say, begun: Mutex::default() };
    let outcome = life(settings, folders, image, &stages).await;
    let took = stages.took();
    match outcome {
        Ok(()) => Boot::Went(took),
        Err(fault) => Boot::Failed(took, chain(&*fault), next_step(&*fault)),
    }
}

async fn life(
    settings: &Settings,
    folders: &Folders,
    image: &ImageRef,
    stages: &Stages<'_>,
) -> Result<(), Box<dyn Error>> {
    let mut end = End::new()?;
    stages.begin("open", "opening what machines are made with");
    let (machines, _images) = open_machines::open(settings, folders).await?;
    // As most of the server's machines have it: a kernel that cannot carry one is to be found out here.
    let egress = Egress::new(settings.egress.clone(), None);
    let network = (!egress.is_none()).then(|| Network { egress, on_refusal: Arc::new(|_refused| {}) });
    let spec = MachineSpec {
        id: EnvironmentId::random(),
        image: image.clone(),
        cpus: settings.default_cpus,
        memory_mib: settings.default_memory_mb,
        disk_mib: settings.default_disk_mb,
        boot_timeout: settings.boot_timeout,
        network,
    };
    let hear = |stage: Stage| stages.begin(name(stage), stage.describe());
    let machine = machines.start(&spec, &hear, Box::pin(end.wanted())).await;
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

/// When each stage began.
struct Stages<'a> {
    say: &'a (dyn Fn(&str) + Send + Sync),
    begun: Mutex<Vec<(&'static str, Instant)>>,
}

impl Stages<'_> {
    fn begin(&self, name: &'static str, what: &str) {
        (self.say)(what);
        let mut begun = lock(&self.begun);
        // More words about the same stage do not begin it again.
        if begun.last().is_none_or(|(last, _)| *last != name) {
            begun.push((name, Instant::now()));
        }
    }

    /// Each stage lasted until the next one began, the last one until now.
    fn took(&self) -> Vec<(&'static str, u128)> {
        let begun = lock(&self.begun);
        let ends = begun.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
        begun.iter().zip(ends).map(|((name, from), to)| (*name, (to - *from).as_millis())).collect()
    }
}
