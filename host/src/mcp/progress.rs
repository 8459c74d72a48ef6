// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tells a client that asked for it how far a long call is.
//!
//! Reports run beside the call and never hold it up: a client that does not read makes its reports stop, not its call.
//! Each stage counts one; a heartbeat goes a part of the way to the next, so that the numbers always grow.

use std::{
    convert::Infallible,
    future::{Future, pending},
    time::Duration,
};

use rmcp::{
    Peer, RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Clients give up on silence after 60 s at the earliest; people sooner.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A client that has not taken a report by then is not reading.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes stages; only the latest matters.
#[derive(Clone, Debug)]
pub(super) struct Progress(watch::Sender<Stage>);

#[derive(Clone, Debug, Default)]
struct Stage {
    done: u32,
    total: Option<u32>,
    message: &'static str,
}

impl Progress {
    /// Says that a stage begins: how many came before it, how many there are, and what it is.
    pub(super) fn stage(&self, done: u32, total: Option<u32>, message: &'static str) {
        self.0.send_replace(Stage { done, total, message });
    }
}

/// The two ends: what takes stages, and what reports them until it is dropped.
pub(super) fn channel(
    token: Option<ProgressToken>,
    peer: Peer<RoleServer>,
) -> (Progress, impl Future<Output = Infallible>) {
    let (sender, receiver) = watch::channel(Stage::default());
    let report = async move {
        if let Some(token) = token {
            report(&token, &peer, receiver).await;
        }
        pending().await
    };
    (Progress(sender), report)
}

/// Returns when there is nobody to report to any more.
async fn report(token: &ProgressToken, peer: &Peer<RoleServer>, mut stages: watch::Receiver<Stage>) {
    let start = Instant::now();
    let mut beats: u32 = 0;
    loop {
        let changed = match timeout(HEARTBEAT, stages.changed()).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => return,
            Err(_) => false,
        };
        beats = if changed { 0 } else { beats.saturating_add(1) };
        let Stage { done, total, message } = stages.borrow_and_update().clone();
        let progress = f64::from(done) + part_of_stage(beats);
        let mut note = ProgressNotificationParam::new(token.clone(), progress);
        if let Some(total) = total {
            note = note.with_total(f64::from(total));
        }
        let message =
            if beats == 0 { message.to_owned() } else { format!("{message} ({} s)", start.elapsed().as_secs()) };
        match timeout(REPORT_TIMEOUT, peer.notify_progress(note.with_message(message))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Grows with every heartbeat and never reaches the next stage.
fn part_of_stage(beats: u32) -> f64 {
    f64::from(beats) / (f64::from(beats) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_always_grows_and_never_reaches_the_next_stage() {
        let parts: Vec<_> = (0..10_000).map(part_of_stage).collect();
        assert_eq!(parts[0], 0.0);
        assert!(parts.windows(2).all(|pair| pair[0] < pair[1] && pair[1] < 1.0));
    }
}
