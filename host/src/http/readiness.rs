// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `GET /readyz`: whether the server's checks pass, by name. The reasons are for the operator, and go to the log.
//!
//! A check may block, on a network file system for example. Each check runs in a thread of its own, and does not begin
//! again before its previous run has ended, so a check that hangs takes one thread, however often clients ask.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout_at},
};

/// Time for which the outcome of a look or of a run is used.
const OUTCOME_FRESH: Duration = Duration::from_secs(1);

/// Timeout of a look. The checks that have not ended by then have failed.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Interval at which the reason of the same failed check is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A check of the server's readiness.
pub struct Check {
    /// The name in the response of `/readyz`.
    pub name: &'static str,
    /// Whether the server is unavailable if the check fails. Otherwise the failure is only shown.
    pub is_required: bool,
    /// Checks the condition; may block. The error is for the operator.
    pub run: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The checks, and the look at them that has ended last.
pub(super) struct Readiness {
    checks: Vec<Arc<Check>>,
    state: tokio::sync::Mutex<Looks>,
}

#[derive(Default)]
struct Looks {
    /// The run of each check, by its name.
    running: HashMap<&'static str, Run>,
    latest: Option<(Instant, Outcome)>,
    /// When the reason of each failed check was logged last, by its name.
    logged: HashMap<&'static str, Instant>,
}

/// A run of a check, which may have ended.
struct Run {
    ended: Arc<OnceLock<Instant>>,
    task: JoinHandle<Result<(), String>>,
}

/// The outcome of each check, in order.
type Outcome = Vec<Result<(), String>>;

impl Readiness {
    pub(super) fn new(checks: Vec<Check>) -> Self {
        Self { checks: checks.into_iter().map(Arc::new).collect(), state: tokio::sync::Mutex::default() }
    }

    /// Returns the outcome of a look that is at most [`OUTCOME_FRESH`] old.
    async fn look(&self) -> Outcome {
        let mut state = self.state.lock().await;
        if let Some((at, outcome)) = &state.latest
            && at.elapsed() < OUTCOME_FRESH
        {
            return outcome.clone();
        }
        let until = Instant::now() + LOOK_TIME;
        state.running.retain(|_, run| !run.is_outdated());
        for check in &self.checks {
            state.running.entry(check.name).or_insert_with(|| Run::start(check));
        }
        let mut outcome = Vec::with_capacity(self.checks.len());
        for check in &self.checks {
            let run = state.running.entry(check.name).or_insert_with(|| Run::start(check));
            outcome.push(match timeout_at(until, &mut run.task).await {
                Err(_elapsed) => Err("timed out; a file system may hang".to_owned()),
                Ok(ended) => {
                    state.running.remove(check.name);
                    ended.unwrap_or_else(|_panic| Err("the check panicked".to_owned()))
                }
            });
        }
        state.latest = Some((Instant::now(), outcome.clone()));
        state.log(&self.checks, &outcome);
        outcome
    }
}

impl Run {
    fn start(check: &Arc<Check>) -> Self {
        let ended = Arc::<OnceLock<_>>::default();
        let (check, at) = (Arc::clone(check), Arc::clone(&ended));
        let task = spawn_blocking(move || {
            let outcome = (check.run)();
            let _ = at.set(Instant::now());
            outcome
        });
        Self { ended, task }
    }

    /// Whether the check has ended too long ago, or has panicked. Its outcome says nothing about the present then.
    fn is_outdated(&self) -> bool {
        self.task.is_finished() && self.ended.get().is_none_or(|at| at.elapsed() >= OUTCOME_FRESH)
    }
}

impl Looks {
    /// Logs the reasons of the failed checks, and the end of failures.
    fn log(&mut self, checks: &[Arc<Check>], outcome: &Outcome) {
        for (check, outcome) in checks.iter().zip(outcome) {
            let name = check.name;
            match outcome {
                Ok(()) => {
                    if self.logged.remove(&name).is_some() {
                        tracing::info!(check = name, "a check of /readyz passes again");
                    }
                }
                Err(reason) => {
                    if self.logged.get(&name).is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        self.logged.insert(name, Instant::now());
                        tracing::warn!(check = name, reason, "a check of /readyz failed");
                    }
                }
            }
        }
    }
}

pub(super) async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let outcome = readiness.look().await;
    let named = || readiness.checks.iter().zip(&outcome);
    let is_ready = named().all(|(check, outcome)| outcome.is_ok() || !check.is_required);
    let shown: Map<String, Value> = named()
        .map(|(check, outcome)| (check.name.to_owned(), if outcome.is_ok() { "ok" } else { "failed" }.into()))
        .collect();
    let (code, status) =
        if is_ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    (code, Json(json!({"status": status, "checks": shown}))).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

    use axum::body::to_bytes;
    use waggle_shared::mutex::lock;

    use super::*;

    fn check(name: &'static str, is_required: bool, outcome: Result<(), String>) -> Check {
        Check { name, is_required, run: Box::new(move || outcome.clone()) }
    }

    async fn answer(readiness: &Arc<Readiness>) -> (u16, Value) {
        let response = ready(State(Arc::clone(readiness))).await;
        let (status, body) = (response.status().as_u16(), to_bytes(response.into_body(), 4096).await.unwrap());
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn readiness_shows_names_without_reasons() {
        let secret = || Err("failed to find /secret/path".to_owned());
        for (is_required, status, word) in [(true, 503, "unavailable"), (false, 200, "ok")] {
            let checks = vec![check("images", true, Ok(())), check("disk", is_required, secret())];
            let readiness = Arc::new(Readiness::new(checks));
            let expected = json!({"status": word, "checks": {"images": "ok", "disk": "failed"}});
            assert_eq!(answer(&readiness).await, (status, expected));
        }
    }

    #[tokio::test]
    async fn hanging_check_takes_one_thread_and_fails_in_time() {
        let (release, released) = mpsc::channel::<()>();
        let (released, runs) = (Mutex::new(released), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&runs);
        let hang = move || {
            counted.fetch_add(1, SeqCst);
            lock(&released).recv().map_err(|fault| fault.to_string())
        };
        let hanging = Check { name: "images", is_required: true, run: Box::new(hang) };
        let readiness = Arc::new(Readiness::new(vec![check("kernel", true, Ok(())), hanging]));
        let start = Instant::now();
        let answers = futures_util::future::join_all((0..50).map(|_| answer(&readiness))).await;
        assert!(start.elapsed() < 2 * LOOK_TIME, "{:?}", start.elapsed());
        let expected = json!({"status": "unavailable", "checks": {"kernel": "ok", "images": "failed"}});
        assert!(answers.iter().all(|answer| *answer == (503, expected.clone())), "{answers:?}");
        tokio::time::sleep(OUTCOME_FRESH).await;
        assert_eq!(answer(&readiness).await.0, 503);
        assert_eq!(runs.load(SeqCst), 1);
        release.send(()).unwrap();
        tokio::time::sleep(2 * OUTCOME_FRESH).await;
        // The run that hung has ended, but its outcome is too old, so the check runs again and hangs again.
        assert_eq!(answer(&readiness).await.0, 503);
        assert_eq!(runs.load(SeqCst), 2);
        release.send(()).unwrap();
        tokio::time::sleep(OUTCOME_FRESH / 2).await;
        release.send(()).unwrap();
        tokio::time::sleep(OUTCOME_FRESH / 2).await;
        assert_eq!(answer(&readiness).await.0, 200);
    }

    #[tokio::test]
    async fn hanging_check_does_not_keep_the_others_from_running() {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let hang = move || lock(&released).recv().map_err(|fault| fault.to_string());
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let fails_later = move || if counted.fetch_add(1, SeqCst) == 0 { Ok(()) } else { Err("gone".to_owned()) };
        let checks = vec![
            Check { name: "kernel", is_required: true, run: Box::new(fails_later) },
            Check { name: "disk", is_required: false, run: Box::new(hang) },
        ];
        let readiness = Arc::new(Readiness::new(checks));
        assert_eq!(answer(&readiness).await.0, 200);
        tokio::time::sleep(OUTCOME_FRESH).await;
        assert_eq!(answer(&readiness).await.0, 503);
        drop(release);
    }
}
