// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps the egress link up: dials the host, and dials again when the link is lost.

use std::{io, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use waggle_link::{Opener, Stream, send_preamble};
use waggle_protocol::{EGRESS_PORT, Link};

use crate::{
    console::{report, with_cause},
    dial,
};

/// Longest wait of a flow for the link: at boot and after a loss it takes a moment.
const UP_MAX: Duration = Duration::from_secs(5);

/// Longest wait for the host's answer to the preamble.
const GREET_MAX: Duration = Duration::from_secs(10);

/// Between the loss of a link and the next try.
const REDIAL: Duration = Duration::from_secs(1);

/// The hold that flows have on the link, whichever it is at the moment.
#[derive(Clone, Debug)]
pub(super) struct Carrier(watch::Receiver<Option<Opener>>);

impl Carrier {
    /// Opens a stream; nothing if there is no link, or it is full.
    pub(super) async fn open(&self) -> Option<Stream> {
        let mut link = self.0.clone();
        let opener = timeout(UP_MAX, link.wait_for(Option::is_some)).await.ok()?.ok()?.clone()?;
        opener.open().await.ok()
    }
}

/// The link that is, and the word on the next one.
pub(super) fn carrier() -> (watch::Sender<Option<Opener>>, Carrier) {
    let (link, carried) = watch::channel(None);
    (link, Carrier(carried))
}

/// Keeps the link up. Never ends.
pub(super) async fn keep_up(link: watch::Sender<Option<Opener>>) {
    // A host that does not answer is reported once and not with every try.
    let mut reported = false;
    loop {
        match establish().await {
            Ok(opener) => {
                reported = false;
                link.send_replace(Some(opener.clone()));
                let fault = opener.ended().await;
                link.send_replace(None);
                report(&format!("lost the egress link, and dial again: {fault}"));
            }
            Err(fault) if !reported => {
                reported = true;
                report(&format!("failed to make the egress link, and try again: {}", with_cause(&fault)));
            }
            Err(_again) => {}
        }
        sleep(REDIAL).await;
    }
}

async fn establish() -> io::Result<Opener> {
    let mut stream = dial::connect(EGRESS_PORT).await?;
    timeout(GREET_MAX, send_preamble(&mut stream, Link::Egress)).await?.map_err(io::Error::other)?;
    Ok(Opener::start(stream, Link::Egress))
}
