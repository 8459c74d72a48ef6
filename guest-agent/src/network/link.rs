// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps the egress link up: connects to the host, and reconnects when the link is lost.

use std::{io, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use waggle_link::{Opener, Stream, dial};
use waggle_protocol::Link;

use crate::{
    console::{report, with_cause},
    dial::{Connector as _, Route},
};

/// Maximum time that a flow or query waits for the link, which is down briefly at boot and after a loss.
const UP_MAX: Duration = Duration::from_secs(5);

/// Timeout for the host's answer. While many machines start, a busy host needs some seconds.
const GREET_MAX: Duration = Duration::from_secs(60);

/// Delay before the first attempt to connect after the loss of a link.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);

/// Delay before the next attempt to connect after a failed attempt.
const RECONNECT: Duration = Duration::from_secs(1);

/// A handle to the current link.
#[derive(Clone, Debug)]
pub(super) struct LinkHandle(watch::Receiver<Option<Opener>>);

impl LinkHandle {
    /// Opens a stream on the link, and waits until one is free; `None` if the link is down. The caller must set a
    /// timeout.
    pub(super) async fn open(&self) -> Option<Stream> {
        let mut link = self.0.clone();
        let opener = timeout(UP_MAX, link.wait_for(Option::is_some)).await.ok()?.ok()?.clone()?;
        opener.open().await.ok()
    }
}

/// Creates a handle without a link, and a sender that sets the link of the handle.
pub(super) fn handle() -> (watch::Sender<Option<Opener>>, LinkHandle) {
    let (sender, link) = watch::channel(None);
    (sender, LinkHandle(link))
}

/// Keeps the link up. Never returns.
pub(super) async fn keep_up(mut route: Route, link: watch::Sender<Option<Opener>>) {
    // A failure to connect is reported only once, not at each retry.
    let mut reported = false;
    loop {
        match connect(&mut route).await {
            Ok(opener) => {
                reported = false;
                link.send_replace(Some(opener.clone()));
                let fault = opener.ended().await;
                link.send_replace(None);
                report(&format!("lost the egress link: {fault}; reconnecting"));
                // In a copy of the machine, a new host waits.
                sleep(RECONNECT_FIRST).await;
                continue;
            }
            Err(fault) if !reported => {
                reported = true;
                report(&format!("failed to connect the egress link: {}; retrying", with_cause(&fault)));
            }
            Err(_reported) => {}
        }
        sleep(RECONNECT).await;
    }
}

async fn connect(route: &mut Route) -> io::Result<Opener> {
    let (stream, past) = route.connect().await?.ok_or(io::ErrorKind::NotConnected)?;
    let records = timeout(GREET_MAX, dial(stream, past, Link::Egress)).await?.map_err(io::Error::other)?;
    Ok(Opener::start(records, Link::Egress))
}
