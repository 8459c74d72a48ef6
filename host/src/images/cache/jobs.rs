// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Preparations that several callers share. The first caller starts a task, and all callers subscribe to the task's
//! progress. The task is aborted when the last caller stops waiting.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use waggle_shared::mutex::lock;

use super::{fault::PrepareFault, prepare::PreparedImage, progress::StageSender, pull::Resolve};
use crate::domain::{image::ImageRef, stage::Stage};

type Outcome = Result<PreparedImage, Arc<PrepareFault>>;
type Key = (ImageRef, Resolve);

/// The running jobs.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<HashMap<Key, Weak<Job>>>);

/// A running preparation. Dropping the last `Arc` aborts the preparation.
#[derive(Debug)]
pub(super) struct Job {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    stages: watch::Receiver<Option<Stage>>,
}

impl Jobs {
    /// Joins the running job of this key, or starts a job with the future that `start` returns.
    pub(super) fn join<F>(&self, key: Key, start: impl FnOnce(StageSender) -> F) -> Arc<Job>
    where
        F: Future<Output = Result<PreparedImage, PrepareFault>> + Send + 'static,
    {
        let mut jobs = lock(&self.0);
        jobs.retain(|_, job| job.strong_count() > 0);
        let running = jobs.get(&key).and_then(Weak::upgrade);
        // A finished job may still be in the map, but its outcome is outdated.
        if let Some(job) = running.filter(|job| job.outcome.peek().is_none()) {
            return job;
        }
        let (sender, stages) = watch::channel(None);
        let what = format!("the image {}", key.0);
        let task = AbortOnDropHandle::new(tokio::spawn(start(sender).in_current_span()));
        let outcome = task
            .map(|joined| joined.unwrap_or_else(|source| Err(PrepareFault::Lost { what, source })).map_err(Arc::new));
        let job = Arc::new(Job { outcome: outcome.boxed().shared(), stages });
        jobs.insert(key, Arc::downgrade(&job));
        job
    }
}

impl Job {
    /// Waits for the outcome. Meanwhile calls `on_stage` with the current stage and with later stages.
    pub(super) async fn outcome(&self, on_stage: &(dyn Fn(Stage) + Send + Sync)) -> Outcome {
        let (mut outcome, mut stages) = (self.outcome.clone(), self.stages.clone());
        stages.mark_changed();
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome,
                Ok(()) = stages.changed() => {
                    let stage = *stages.borrow_and_update();
                    stage.into_iter().for_each(on_stage);
                }
            }
        }
    }
}
