// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Templates: snapshots of unused machines, from which new machines start.
//!
//! A template is a machine that has booted. It is made in the background when an environment of a new shape is created,
//! which boots meanwhile. It has been warmed up, or it dials the host for the first time. No code of a user has run in
//! it, and it has no secrets; each machine that starts from it gets an identity of its own from the host's welcome. All
//! templates end with the server.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use waggle_link::{Past, await_dial};
use waggle_protocol::{CALL_PORT, EGRESS_PORT};
use waggle_shared::mutex::lock;

use super::{
    launch_plan::LaunchPlan,
    link_source::LinkSource,
    owner::{self, BootFault},
    runner_process::RunnerProcess,
    settings::TemplateSettings,
    snapshot::{GuestFile, Pasts, Shape, VmSnapshot},
    snapshotting, warm_up,
};
use crate::{
    agent::{self, Timeouts},
    domain::{machine::Afterwards, principal::Principal},
};

/// Beginning of the names of the folders of templates.
pub(super) const TEMPLATE_PREFIX: &str = "template-";

/// Delay before a snapshot. A guest reports the memory that it has freed after two seconds.
const SETTLING: Duration = Duration::from_secs(3);

/// The templates of a server.
#[derive(Debug)]
pub(super) struct Templates {
    pub(super) settings: TemplateSettings,
    /// The least recently used first.
    entries: Mutex<Vec<(Key, Entry)>>,
    /// One permit: only one template is made at a time.
    making: Arc<Semaphore>,
    /// Cancelled when no more templates are made.
    stop: CancellationToken,
}

/// The machines that can start from one template.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    shape: Shape,
    /// The only caller whose machines start from the template; `None` for all.
    caller: Option<Principal>,
}

#[derive(Debug)]
enum Entry {
    /// The template is being made, or could not be made: a failed attempt is repeated only by another server.
    Pending,
    Ready(Arc<VmSnapshot>),
}

impl Templates {
    /// `stop` is cancelled when all machines end.
    pub(super) fn new(settings: TemplateSettings, stop: CancellationToken) -> Self {
        Self { settings, entries: Mutex::default(), making: Arc::new(Semaphore::new(1)), stop }
    }

    pub(super) fn key(&self, shape: Shape, caller: &Principal) -> Key {
        Key { shape, caller: (!self.settings.are_shared).then(|| caller.clone()) }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<VmSnapshot>> {
        let mut entries = lock(&self.entries);
        let position = entries.iter().position(|(known, _)| known == key)?;
        let entry = entries.remove(position);
        let found = match &entry.1 {
            Entry::Pending => None,
            Entry::Ready(template) => Some(Arc::clone(template)),
        };
        entries.push(entry);
        found
    }

    /// Whether no templates are made at all.
    pub(super) fn are_off(&self) -> bool {
        self.settings.count == 0
    }

    /// The permit to make a template; `None` if another one is being made. Otherwise a client could cause any number of
    /// machines that wait to become templates.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.making).try_acquire_owned().ok()
    }

    pub(super) async fn wait_for_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.making).acquire_owned().await.ok()
    }

    /// Cancels the making of a template, and makes no more.
    pub(super) fn stop_making(&self) {
        self.stop.cancel();
        self.making.close();
    }

    /// A token that is cancelled when no more templates are made.
    pub(super) fn making_stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Reserves the entry of a template. Returns false if the template exists, or was reserved before.
    pub(super) fn reserve(&self, key: &Key) -> bool {
        let mut entries = lock(&self.entries);
        if self.settings.count == 0 || entries.iter().any(|(known, _)| known == key) {
            return false;
        }
        entries.push((key.clone(), Entry::Pending));
        self.evict(&mut entries);
        true
    }

    /// Adds a template. Returns false if it alone exceeds the limit, or if other entries have taken the place of its
    /// reservation.
    pub(super) fn add(&self, key: &Key, template: VmSnapshot) -> bool {
        let mut entries = lock(&self.entries);
        let template = Entry::Ready(Arc::new(template));
        if template.bytes() > self.settings.bytes {
            return false;
        }
        let Some((_, entry)) = entries.iter_mut().find(|(known, _)| known == key) else { return false };
        *entry = template;
        self.evict(&mut entries);
        true
    }

    /// Removes a template that does not work. It is not made again.
    pub(super) fn disable(&self, key: &Key) {
        if let Some((_, entry)) = lock(&self.entries).iter_mut().find(|(known, _)| known == key) {
            *entry = Entry::Pending;
        }
    }

    /// Releases a reservation.
    pub(super) fn forget(&self, key: &Key) {
        lock(&self.entries).retain(|(known, _)| known != key);
    }

    fn evict(&self, entries: &mut Vec<(Key, Entry)>) {
        let within = |entries: &[(Key, Entry)]| {
            let sum: u64 = entries.iter().map(|(_, entry)| entry.bytes()).sum();
            entries.len() <= self.settings.count && sum <= self.settings.bytes
        };
        while !entries.is_empty() && !within(entries) {
            entries.remove(0);
        }
    }
}

impl Entry {
    /// The memory that the entry occupies.
    fn bytes(&self) -> u64 {
        let Self::Ready(template) = self else { return 0 };
        let file = template.memory.as_ref().and_then(|memory| memory.guest.file());
        file.and_then(|file| file.occupied_bytes().ok()).unwrap_or(0)
    }
}

type Fault = Box<dyn Error + Send + Sync>;

/// Boots a machine, and ends it with a snapshot.
///
/// # Errors
/// The step that failed. All resources of the machine are released.
pub(super) async fn make(plan: LaunchPlan, is_warm: bool, stop: &CancellationToken) -> Result<VmSnapshot, Fault> {
    let run_dir = plan.orders.run_dir.clone();
    let made = boot_and_take(&plan, is_warm, stop).await;
    owner::remove(run_dir).await;
    made
}

async fn boot_and_take(plan: &LaunchPlan, is_warm: bool, stop: &CancellationToken) -> Result<VmSnapshot, Fault> {
    owner::make_files(plan).await?;
    if stop.is_cancelled() {
        return Err(BootFault::Cancelled.into());
    }
    let listen = |port| LinkSource::listen(&plan.orders.run_dir, port, plan.boot.transport, Past::None);
    let calls = listen(CALL_PORT)?;
    let egress = plan.boot.network.is_some().then(|| listen(EGRESS_PORT)).transpose()?;
    let files = plan.start.files();
    let mut runner = RunnerProcess::start(&plan.runner, &plan.orders, &files, plan.shows_log).await?;
    let taken = tokio::select! {
        taken = take_prepared(plan, &mut runner, calls, egress, is_warm) => taken,
        () = stop.cancelled() => Err(BootFault::Cancelled.into()),
    };
    runner.stop().await;
    let mut template = taken?;
    if let Some(memory) = &mut template.memory
        && let Some(file) = memory.guest.file()
    {
        file.seal().await?;
        memory.guest = GuestFile::Shared(file);
    }
    Ok(template)
}

async fn take_prepared(
    plan: &LaunchPlan,
    runner: &mut RunnerProcess,
    calls: LinkSource,
    egress: Option<LinkSource>,
    is_warm: bool,
) -> Result<VmSnapshot, Fault> {
    let (pasts, _open_links) = tokio::select! {
        prepared = prepare(plan, calls, egress, is_warm) => prepared?,
        reason = runner.ended() => return Err(BootFault::Ended { reason }.into()),
    };
    Ok(snapshotting::take_held(Afterwards::End, plan, runner, pasts).await?)
}

/// Waits until the guest can be copied. The network's link is never answered.
async fn prepare(
    plan: &LaunchPlan,
    mut calls: LinkSource,
    mut egress: Option<LinkSource>,
    is_warm: bool,
) -> Result<(Pasts, (LinkSource, Option<LinkSource>)), Fault> {
    let late = |_elapsed| BootFault::TimedOut { after: plan.boot_timeout };
    let egress_dials = async {
        match &mut egress {
            Some(egress) => dial(egress).await,
            None => Ok(Past::None),
        }
    };
    if is_warm {
        let (stream, past) = calls.next().await?;
        let connected = agent::connect(stream, past, &plan.hostname, Timeouts::default());
        let agent = timeout(plan.boot_timeout, connected).await.map_err(late)??;
        warm_up::warm_up(&agent).await;
        // By then the guest has given the memory back that it has freed.
        sleep(SETTLING).await;
        agent.hold().await?;
    }
    let calls_past = timeout(plan.boot_timeout, dial(&mut calls)).await.map_err(late)??;
    let pasts = Pasts { calls: calls_past, egress: timeout(plan.boot_timeout, egress_dials).await.map_err(late)?? };
    Ok((pasts, (calls, egress)))
}

/// Waits until the guest dials, and does not answer.
async fn dial(link: &mut LinkSource) -> Result<Past, Fault> {
    let (stream, past) = link.next().await?;
    Ok(Past::Dialled(await_dial(stream, past).await?.nonce()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::machines::{
        machine_image::MachineImage,
        memory_file::MemoryFile,
        snapshot::{SavedDisk, SavedMemory},
    };

    fn shape(cpus: u32) -> Shape {
        Shape { image: "image".into(), cpus, memory_mib: 8, disk_mib: 64, boot: Vec::new() }
    }

    /// Creates a template that occupies so much memory.
    fn template(cpus: u32, mib: usize) -> VmSnapshot {
        let guest = MemoryFile::of_guest(8).unwrap();
        guest.file().write_all_at(&vec![1; mib << 20], 0).unwrap();
        let devices = MemoryFile::with_content(b"devices").unwrap();
        let image = MachineImage {
            erofs: "image".into(),
            cached: "image".into(),
            env: Vec::new(),
            working_directory: None,
            agent: None,
            _lease: None,
        };
        VmSnapshot {
            shape: shape(cpus),
            memory: Some(SavedMemory { guest: GuestFile::Shared(guest), devices, pasts: Pasts::NONE }),
            disk: SavedDisk::in_folder("disk".into()),
            image,
            image_pool: "pool".into(),
            origin: Arc::default(),
        }
    }

    fn templates(count: usize, mib: u64, are_shared: bool) -> Templates {
        let settings = TemplateSettings { count, bytes: mib << 20, are_shared, are_warm: false };
        Templates::new(settings, CancellationToken::new())
    }

    fn made(templates: &Templates, cpus: u32, mib: usize) -> bool {
        let key = templates.key(shape(cpus), &Principal::anonymous());
        templates.reserve(&key) && templates.add(&key, template(cpus, mib))
    }

    fn present(templates: &Templates) -> Vec<u32> {
        let key = |cpus| templates.key(shape(cpus), &Principal::anonymous());
        (1..8)
            .filter(|cpus| {
                lock(&templates.entries).iter().any(|(known, entry)| *known == key(*cpus) && entry.bytes() > 0)
            })
            .collect()
    }

    #[test]
    fn least_recently_used_template_gives_way_to_number_and_memory() {
        let templates = templates(3, 6, false);
        assert!(made(&templates, 1, 1) && made(&templates, 2, 1) && made(&templates, 3, 1));
        assert!(templates.get(&templates.key(shape(1), &Principal::anonymous())).is_some());
        assert!(made(&templates, 4, 1));
        assert_eq!(present(&templates), [1, 3, 4]);
        assert!(made(&templates, 5, 5));
        assert_eq!(present(&templates), [4, 5]);
        assert!(!made(&templates, 6, 7));
        assert_eq!(present(&templates), [4, 5]);
    }

    #[test]
    fn callers_share_templates_only_if_the_operator_says_so() {
        for are_shared in [false, true] {
            let templates = templates(3, 6, are_shared);
            assert!(made(&templates, 1, 1));
            let other = templates.key(shape(1), &"ada".parse().unwrap());
            assert_eq!(templates.get(&other).is_some(), are_shared);
        }
    }

    #[test]
    fn template_that_failed_is_not_made_again_but_one_that_was_cancelled_is() {
        let templates = templates(3, 6, false);
        assert!(made(&templates, 1, 1));
        let key = templates.key(shape(1), &Principal::anonymous());
        templates.disable(&key);
        assert!(templates.get(&key).is_none() && !templates.reserve(&key));
        templates.forget(&key);
        assert!(templates.reserve(&key));
    }
}
