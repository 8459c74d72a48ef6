// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A server without machines, for the official conformance suite and other tests. It offers waggle's tools and the
//! suite's fixtures through the product's HTTP server. Its environments are real agents in this process.
//!
//! `conformance [FLAGS of waggle serve]` prints its address and serves until its standard input ends.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "it serves tests, which see its output"
)]
#![expect(deprecated, reason = "the suite also tests older protocol versions")]

mod documents;
mod fixtures;
mod jobs;
mod listeners;
#[path = "../../tests/behaviour/machines.rs"]
mod machines;
mod messages;
mod rounds;
mod tools;

use std::{ffi::OsString, sync::Arc};

use tokio::io::{AsyncReadExt as _, stdin};
use waggle::{
    cli::{self, Command, CommandArguments},
    domain::runtime::ByRuntime,
    http,
    server::Waggle,
    telemetry,
};
use waggle_images::reference::ImageRef;

use crate::{fixtures::Fixtures, machines::InProcess};

/// The product's allocator, because the soak test measures the memory of this process.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() {
    telemetry::start(telemetry::SERVER_FILTER).unwrap();
    let words = ["waggle", "serve", "--listen-addr", "127.0.0.1:0"].map(OsString::from);
    let words = words.into_iter().chain(std::env::args_os().skip(1));
    let settings = match cli::parse(words, &|_| None) {
        Ok(CommandArguments { command: Command::Serve(settings) }) => *settings,
        other => panic!("expected flags of waggle serve: {other:?}"),
    };
    let image = || "oci:/in-process".parse::<ImageRef>().unwrap();
    let images = ByRuntime { python: image(), node: image(), shell: image() };
    let listener = http::bind(settings.listen_addr).await.unwrap();
    let mut waggle = Waggle::start(&settings, images, Arc::new(InProcess::default()));
    let fixtures = Fixtures::new(waggle.tools());
    println!("http://{}/mcp", waggle.listen_with(fixtures, listener, None, Vec::new()).unwrap());
    let _ = stdin().read_to_end(&mut Vec::new()).await;
    waggle.shut_down().await;
}
