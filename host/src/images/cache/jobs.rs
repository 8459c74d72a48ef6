// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Work that several callers wait for: the first one starts it, all hear of it, and it ends with the last one's
//! patience.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::{sync::watch, task::AbortHandle};
use tracing::Instrument as _;

use super::{PrepareFault, PreparedImage, Resolve};
use crate::domain::{
    image::ImageRef,
    ports::{PortFuture, Stage},
};
use crate::mutex::lock;

/// What a job comes to.
pub(super) type Outcome = Result<PreparedImage, Arc<PrepareFault>>;

/// What callers hear.
#[derive(Clone, Debug, Default)]
struct News {
    stage: Option<Stage>,
    outcome: Option<Outcome>,
}

/// Tells all callers of a job how far it is; they hear the latest.
#[derive(Clone, Debug)]
pub(super) struct Teller(watch::Sender<News>);

impl Teller {
    pub(super) fn tell(&self, stage: Stage) {
        self.0.send_modify(|news| news.stage = Some(stage));
    }
}

type Key = (ImageRef, Resolve);

/// The jobs that are under way.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<HashMap<Key, Weak<Job>>>);

/// One job; dropping the last handle ends it.
#[derive(Debug)]
pub(super) struct Job {
    news: watch::Receiver<News>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Jobs {
    /// Joins the job of this key, or starts it with the work that `start` makes.
    pub(super) fn join(
        &self,
        key: Key,
        start: impl FnOnce(Teller) -> PortFuture<'static, Result<PreparedImage, PrepareFault>>,
    ) -> Arc<Job> {
        let mut running = lock(&self.0);
        running.retain(|_, job| job.strong_count() > 0);
        let under_way = running.get(&key).and_then(Weak::upgrade);
        // One that is over but still being heard of says nothing about now.
        if let Some(job) = under_way.filter(|job| job.news.borrow().outcome.is_none()) {
            return job;
        }
        let (sender, news) = watch::channel(News::default());
        let work = start(Teller(sender.clone()));
        let run = async move {
            let outcome = work.await.map_err(Arc::new);
            sender.send_modify(|news| news.outcome = Some(outcome));
        };
        let task = tokio::spawn(run.in_current_span()).abort_handle();
        let job = Arc::new(Job { news, task });
        running.insert(key, Arc::downgrade(&job));
        job
    }
}

impl Job {
    /// Waits for the outcome; `tell` hears the stages until then.
    pub(super) async fn outcome(&self, image: &ImageRef, tell: &(dyn Fn(Stage) + Send + Sync)) -> Outcome {
        let mut news = self.news.clone();
        let mut told = None;
        loop {
            let News { stage, outcome } = news.borrow_and_update().clone();
            if let Some(outcome) = outcome {
                return outcome;
            }
            if let Some(stage) = stage.filter(|stage| told.replace(*stage) != Some(*stage)) {
                tell(stage);
            }
            if news.changed().await.is_err() {
                // The last words may have come with the end.
                let last = news.borrow().outcome.clone();
                return last.unwrap_or_else(|| {
                    Err(Arc::new(PrepareFault::Lost { what: format!("the image {image}"), source: None }))
                });
            }
        }
    }
}
