// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Waits for a machine's egress link and has it served, for as long as the machine lives.
//!
//! A machine that loses this link keeps its environment, and may dial again.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{net::UnixListener, task::AbortHandle, time::sleep};
use tracing::Instrument as _;

use crate::network::{self, Guest, ServeFault};

/// Before a machine that has lost its link is listened to again: a guest that breaks rules does not keep the host busy.
const BETWEEN_LINKS: Duration = Duration::from_secs(1);

/// Lines in the log for one machine's lost links.
const LOST_LOGGED_MAX: u32 = 10;

/// A machine's network; dropping it ends every flow.
#[derive(Debug)]
pub(super) struct EgressLink(AbortHandle);

impl EgressLink {
    /// Serves what dials `listener`, one link at a time.
    pub(super) fn start(listener: UnixListener, guest: Guest) -> Self {
        Self(tokio::spawn(accept(listener, Arc::new(guest)).in_current_span()).abort_handle())
    }
}

impl Drop for EgressLink {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: UnixListener, guest: Arc<Guest>) {
    for lost in 0_u32.. {
        let fault = match listener.accept().await {
            Ok((stream, _)) => network::serve(stream, Arc::clone(&guest)).await,
            Err(source) => ServeFault::Accept { source },
        };
        if lost < LOST_LOGGED_MAX {
            tracing::warn!(error = &fault as &dyn Error, "a machine has lost its network for now");
        }
        sleep(BETWEEN_LINKS).await;
    }
}
