// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! From a reference to a merged image, by the shortest way: what is here already is not made or fetched again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oci_spec::image::Descriptor;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, interval_at},
};

use super::{
    Dropped, Lease, PrepareFault, PreparedImage, Resolve, Rules, Turns,
    blobs::{Blobs, file_fault},
    evict,
    jobs::Teller,
    pull::pull_fault,
    records::Records,
    usage,
};
use crate::{
    domain::{
        image::{ImageRef, RegistryRef},
        ports::{Amount, Stage},
    },
    images::{
        merge::{self, FoundImage, MERGES_AT_ONCE, Merged, Watch},
        registry::{Registries, Session},
    },
};

/// From one word of a merge's progress to the next.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

/// Prepares images, whoever wants them.
#[derive(Debug)]
pub(super) struct Preparer {
    pub(super) merged: Merged,
    pub(super) blobs: Blobs,
    pub(super) records: Records,
    registries: Registries,
    rules: Rules,
    pub(super) cache_dir: PathBuf,
    pub(super) turns: Turns,
    merges: Arc<Semaphore>,
}

impl Preparer {
    pub(super) fn new(
        merged: Merged,
        blobs: Blobs,
        records: Records,
        registries: Registries,
        rules: Rules,
        cache_dir: PathBuf,
    ) -> Self {
        let (turns, merges) = (Turns::default(), Arc::new(Semaphore::new(MERGES_AT_ONCE)));
        Self { merged, blobs, records, registries, rules, cache_dir, turns, merges }
    }

    pub(super) async fn prepare(
        self: &Arc<Self>,
        image: &ImageRef,
        resolve: Resolve,
        teller: &Teller,
    ) -> Result<PreparedImage, PrepareFault> {
        let held = self.blocking(|preparer| preparer.blobs.hold()).await?;
        let mut prepared = self.prepare_held(image, resolve, teller).await;
        if prepared.is_err() && self.drop_corrupt(image).await {
            prepared = self.prepare_held(image, resolve, teller).await;
        }
        drop(held);
        let (prepared, is_new) = prepared?;
        if is_new {
            let Dropped { .. } = self.blocking(|preparer| Ok(preparer.tidy())).await?;
        }
        Ok(prepared)
    }

    /// With it, whether the cache has grown by it.
    async fn prepare_held(
        self: &Arc<Self>,
        image: &ImageRef,
        resolve: Resolve,
        teller: &Teller,
    ) -> Result<(PreparedImage, bool), PrepareFault> {
        let found = match image {
            ImageRef::Registry(registry) => self.fetch(image, registry, resolve, teller).await?,
            ImageRef::Layout(_) | ImageRef::Archive(_) => {
                let image = image.clone();
                self.blocking(move |_preparer| Ok(FoundImage::on_this_machine(&image)?)).await?
            }
        };
        let manifest = found.manifest().clone();
        let digest = manifest.digest().clone();
        let (env, agent) = (found.env().to_vec(), found.agent().cloned());
        let working_directory = found.working_directory().map(str::to_owned);
        let (lease, is_new) = self.merge(found, teller).await?;
        let erofs = self.merged.path_of(&digest);
        let image = image.clone();
        self.blocking(move |preparer| {
            // A registry's is kept from when it was resolved; a folder's or an archive's once it has proved to be an
            // image.
            let is_local = !matches!(image, ImageRef::Registry(_));
            if is_local && preparer.records.find(&image).is_none_or(|record| record.manifest.digest() != &digest) {
                preparer.records.put(&image, &manifest)?;
            }
            // The configuration, first of the parts, is read each time; of an image of this machine it lies elsewhere.
            let parts = merge::parts(&image.to_string(), &preparer.cache_dir, &manifest).unwrap_or_default();
            preparer.blobs.touch(parts.first().map(Descriptor::digest).into_iter().chain([&digest]));
            usage::touch(&preparer.records.path_of(&image.to_string()));
            Ok(())
        })
        .await?;
        Ok((PreparedImage { erofs, env, working_directory, agent, lease: Arc::new(lease) }, is_new))
    }

    /// Sees to it that of an image in a registry everything is here that is still needed.
    async fn fetch(
        self: &Arc<Self>,
        image: &ImageRef,
        registry: &RegistryRef,
        resolve: Resolve,
        teller: &Teller,
    ) -> Result<FoundImage, PrepareFault> {
        let name = image.to_string();
        let known = match resolve {
            Resolve::Once => {
                let image = image.clone();
                self.blocking(move |preparer| Ok(preparer.known(&image))).await?
            }
            Resolve::Anew => None,
        };
        let mut session: Option<Session<'_>> = None;
        let manifest = match known {
            Some(manifest) => manifest,
            None => {
                let opened = self.registries.connect(registry).await.map_err(pull_fault(&name))?;
                let manifest = self.resolve(&name, &opened).await?;
                session = Some(opened);
                manifest
            }
        };
        let missing = {
            let (name, manifest) = (name.clone(), manifest.clone());
            self.blocking(move |preparer| preparer.missing(&name, &manifest)).await?
        };
        if !missing.is_empty() {
            let opened = match session {
                Some(opened) => opened,
                None => self.registries.connect(registry).await.map_err(pull_fault(&name))?,
            };
            self.download(&name, &opened, &missing, teller).await?;
        }
        let image = image.clone();
        self.blocking(move |preparer| {
            // Only now: what a reference stands for is here, whole.
            if resolve == Resolve::Anew
                || preparer.records.find(&image).is_none_or(|record| record.manifest != manifest)
            {
                preparer.records.put(&image, &manifest)?;
            }
            Ok(FoundImage::in_blobs(name, &preparer.cache_dir, &manifest)?)
        })
        .await
    }

    /// What the reference stood for when it was pulled, if that is still here.
    fn known(&self, image: &ImageRef) -> Option<Descriptor> {
        let manifest = self.records.find(image)?.manifest;
        self.blobs.has(&manifest).then_some(manifest)
    }

    /// The blobs that are needed and not here. Layers are needed to merge them.
    fn missing(&self, name: &str, manifest: &Descriptor) -> Result<Vec<Descriptor>, PrepareFault> {
        let parts = merge::parts(name, &self.cache_dir, manifest)?;
        let merged = self.merged.path_of(manifest.digest()).is_file();
        let needed = if merged { 1 } else { parts.len() };
        let mut missing: Vec<Descriptor> = Vec::new();
        for part in parts.into_iter().take(needed) {
            // An image may have a layer twice.
            if !self.blobs.has(&part) && !missing.iter().any(|other| other.digest() == part.digest()) {
                missing.push(part);
            }
        }
        Ok(missing)
    }

    /// Gives a lease on the merged image, and says whether it had to be merged.
    async fn merge(self: &Arc<Self>, found: FoundImage, teller: &Teller) -> Result<(Lease, bool), PrepareFault> {
        let path = self.merged.path_of(found.manifest().digest());
        if let Some(lease) = self.lease(&path).await? {
            return Ok((lease, false));
        }
        let turn = self.turns.wait(&path).await;
        if let Some(lease) = self.lease(&path).await? {
            return Ok((lease, false));
        }
        // The semaphore is never closed.
        let place = Arc::clone(&self.merges).acquire_owned().await.ok();
        let stop = StopOnDrop::default();
        let (watch, total) = (Arc::clone(&stop.0), found.layer_bytes());
        teller.tell(Stage::Merge(Amount { done: 0, total }));
        let mut merging = spawn_blocking({
            let (preparer, watch) = (Arc::clone(self), Arc::clone(&watch));
            move || {
                let merged = preparer.merged.merge(&found, &watch);
                preparer.blobs.touch(found.layers().map(Descriptor::digest));
                // Held until the work is really over, even if its caller has gone.
                drop((turn, place));
                merged
            }
        });
        let mut tick = interval_at(Instant::now() + TELL_INTERVAL, TELL_INTERVAL);
        let merged = loop {
            tokio::select! {
                merged = &mut merging => break merged,
                _ = tick.tick() => teller.tell(Stage::Merge(Amount { done: watch.read_bytes().min(total), total })),
            }
        };
        let lost = |source| PrepareFault::Lost { what: path.display().to_string(), source: Some(source) };
        merged.map_err(lost)??;
        match self.lease(&path).await? {
            Some(lease) => Ok((lease, true)),
            // Whoever is quick enough to throw it away at once means it.
            None => Err(file_fault("find", &path)(io::ErrorKind::NotFound.into())),
        }
    }

    async fn lease(self: &Arc<Self>, path: &Path) -> Result<Option<Lease>, PrepareFault> {
        let path = path.to_owned();
        self.blocking(move |_| usage::lease(&path).map_err(file_fault("use", &path))).await
    }

    /// After a failure: whether blobs of the image were damaged, so that it may work without them.
    async fn drop_corrupt(self: &Arc<Self>, image: &ImageRef) -> bool {
        let image = image.clone();
        let dropped = self.blocking(move |preparer| {
            let Some(manifest) = preparer.known(&image) else { return Ok(0) };
            if preparer.blobs.drop_corrupt(std::iter::once(&manifest)) > 0 {
                return Ok(1);
            }
            let parts = merge::parts(&image.to_string(), &preparer.cache_dir, &manifest)?;
            Ok(preparer.blobs.drop_corrupt(parts.iter()))
        });
        dropped.await.unwrap_or(0) > 0
    }

    pub(super) fn tidy(&self) -> Dropped {
        evict::tidy(self, &self.rules)
    }
}

/// Tells the merge that nobody waits for it any more.
#[derive(Default)]
struct StopOnDrop(Arc<Watch>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
