// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's client with guests that lie, flood or stall, over real sockets. The caller must get an error within a
//! timeout, and the host's memory must grow by at most 16 MiB.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod calls;
mod egress;
mod floods;
mod greeting;
mod guest;
mod memory;

use std::{future::Future, sync::LazyLock, time::Duration};

use tokio::sync::Mutex;
use waggle::domain::{
    command::{Command, CommandLimits, User},
    guest_path::GuestPath,
};

/// Limit of the host's memory growth per test, in bytes.
const GROWTH_MAX: usize = 16 * 1024 * 1024;

/// Time limit of each test; the timeouts under test are much shorter.
const STUCK: Duration = Duration::from_secs(20);

/// Lock that each test holds while it runs. Only one test runs at a time, so each measures only its own memory.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Runs a test that must neither hang nor use much memory.
async fn bounded(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().await;
    let growth = memory::Growth::from_here();
    tokio::time::timeout(STUCK, test).await.expect("the host is stuck with this guest");
    let most = growth.most();
    assert!(most <= GROWTH_MAX, "the host grew by {most} bytes");
}

fn command() -> Command {
    Command {
        argv: vec!["sh".to_owned()],
        script: None,
        stdin: Vec::new(),
        env: Vec::new(),
        working_directory: None,
        output_bytes_max: 0,
        keep_output_above_bytes: u64::MAX,
        limits: CommandLimits::default(),
        user: User::Sandbox,
        timeout: Duration::from_millis(500),
    }
}

fn path() -> &'static GuestPath {
    static PATH: LazyLock<GuestPath> = LazyLock::new(|| GuestPath::parse("file").unwrap());
    &PATH
}
