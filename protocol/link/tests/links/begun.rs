// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The beginning of a link, which each test of links needs.

use tokio::io::{AsyncRead, AsyncWrite};
use waggle_link::{Past, Records, await_dial, begin};

/// Begins a generation between a host and a guest.
pub(crate) async fn begun<H, G>(host: H, guest: G) -> (Records<H>, Records<G>)
where
    H: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let answered = async { await_dial(host, Past::None).await.unwrap().answer().await.unwrap() };
    let (host, guest) = tokio::join!(answered, begin(guest, Past::None));
    (host, guest.unwrap())
}
