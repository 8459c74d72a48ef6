// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Accepts and serves a machine's egress link until the machine ends.
//!
//! A machine that loses the link may connect again.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{task::AbortHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::link_source::LinkSource;
use crate::network::{self, Guest, ServeFault};

/// Delay before the next link is accepted, so a misbehaving guest cannot keep the host busy with new links.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Maximum number of log lines about lost links, per machine.
const LOST_LOGGED_MAX: u32 = 10;

/// A machine's egress link. Dropping it closes all connections.
#[derive(Debug)]
pub(super) struct EgressLink(AbortHandle);

impl EgressLink {
    /// Serves one link at a time from `source`. Once `stop` is cancelled, the end of a link is expected.
    pub(super) fn start(source: LinkSource, guest: Guest, stop: CancellationToken) -> Self {
        Self(tokio::spawn(accept(source, Arc::new(guest), stop).in_current_span()).abort_handle())
    }
}

impl Drop for EgressLink {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(mut source: LinkSource, guest: Arc<Guest>, stop: CancellationToken) {
    for lost in 0_u32.. {
        let fault = match source.next().await {
            Ok((stream, past)) => network::serve(stream, past, Arc::clone(&guest)).await,
            Err(source) => ServeFault::Accept { source },
        };
        if source.has_ended() {
            return;
        }
        if lost < LOST_LOGGED_MAX && !stop.is_cancelled() {
            tracing::warn!(error = &fault as &dyn Error, "a machine lost its egress link; it may connect again");
        }
        sleep(ACCEPT_DELAY).await;
    }
}
