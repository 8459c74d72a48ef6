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

use super::{fault::PrepareFault, prepare::PreparedImage, pull::Resolve};
use crate::{
    progress::{Progress, ProgressSender},
    reference::{ImageRef, PullRights},
};

type Outcome = Result<PreparedImage, Arc<PrepareFault>>;
type Key = (ImageRef, PullRights, Resolve);

/// The running jobs.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<HashMap<Key, Weak<Job>>>);

/// A running preparation. Dropping the last `Arc` aborts the preparation.
#[derive(Debug)]
pub(super) struct Job {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    progress: watch::Receiver<Option<Progress>>,
}

impl Jobs {
    /// Joins the running job of this key, or starts a job with the future that `start` returns.
    pub(super) fn join<F>(&self, key: Key, start: impl FnOnce(ProgressSender) -> F) -> Arc<Job>
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
        let (sender, progress) = watch::channel(None);
        let what = format!("the image {}", key.0);
        let task = AbortOnDropHandle::new(tokio::spawn(start(sender).in_current_span()));
        let outcome = task
            .map(|joined| joined.unwrap_or_else(|source| Err(PrepareFault::Lost { what, source })).map_err(Arc::new));
        let job = Arc::new(Job { outcome: outcome.boxed().shared(), progress });
        jobs.insert(key, Arc::downgrade(&job));
        job
    }
}

impl Job {
    /// Waits for the outcome. Meanwhile calls `on_progress` with the current progress and with later progress.
    pub(super) async fn outcome(&self, on_progress: &(dyn Fn(Progress) + Send + Sync)) -> Outcome {
        let (mut outcome, mut progress) = (self.outcome.clone(), self.progress.clone());
        progress.mark_changed();
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome,
                Ok(()) = progress.changed() => {
                    let current = *progress.borrow_and_update();
                    current.into_iter().for_each(on_progress);
                }
            }
        }
    }
}
