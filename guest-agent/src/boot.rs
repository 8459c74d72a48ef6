// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The boot of PID 1: from the kernel's start of the program to a serving agent.
//!
//! ```text
//!   kernel ─▶ PID 1, in the initial root
//!              modules, image (EROFS, read-only) + scratch (ext4) = overlay, which becomes /
//!              fork ─▶ child: the image's agent if configured, else this program; connects to the host, serves
//!              reap until the child has exited, then end the machine
//! ```
//!
//! PID 1 stays single-threaded. If the boot fails, PID 1 reports the reason on the console and ends the machine.

mod certificates;
mod disks;
mod hosts;
mod replace;
mod resolver;
mod root;
mod serving;
mod users;

use std::{fs, io, process::ExitCode};

use nix::sys::sysinfo::sysinfo;
use waggle_protocol::boot::{BOOT_CONFIG_PATH, BootConfig};

pub use self::serving::{SERVE, serve_from_image};
use crate::{
    cgroups,
    console::{report, with_cause},
    network::GuestNetwork,
    reaper,
    step::{StepFault, WithStep},
    sys,
};

/// Maximum number of descriptors that one user may watch with epoll. The value is practically unlimited: memory is the
/// real limit.
const EPOLL_WATCHES_MAX: &str = "100000000";

/// Runs PID 1. Returns only if the machine could not be ended.
#[must_use]
pub fn run() -> ExitCode {
    match prepare() {
        Ok((config, mut network)) => match serving::start(&config, config.image_agent.as_deref(), &mut network) {
            Ok(first) => {
                let second = |network: &mut Option<GuestNetwork>| serving::start(&config, None, network);
                reaper::reap_until_exit(first, config.image_agent.is_some().then_some(second), &mut network);
            }
            Err(errno) => report(&format!("failed to start the serving child: {errno}")),
        },
        Err(fault) => report(&with_cause(&fault)),
    }
    reaper::end_machine();
    ExitCode::FAILURE
}

/// Sets up the machine except for the serving child.
fn prepare() -> Result<(BootConfig, Option<GuestNetwork>), StepFault> {
    root::mount_initial()?;
    let bytes = fs::read(BOOT_CONFIG_PATH).step(|| format!("read {BOOT_CONFIG_PATH}"))?;
    let mut config = serving::decode(&bytes).step(|| format!("decode {BOOT_CONFIG_PATH}"))?;
    disks::load_modules(&config.modules)?;
    disks::mount_root()?;
    root::switch_root()?;
    root::mount_in_root()?;
    users::add_sandbox_user()?;
    protect_agent().step(|| "set up the control groups".to_owned())?;
    hosts::name_machine(&config.hostname)?;
    sys::set_loopback_up().step(|| "set the loopback device up".to_owned())?;
    // The image's own variables follow in the list, so they override these certificate variables.
    config.env.splice(0..0, certificates::trust(&std::mem::take(&mut config.ca_bundle))?);
    let mut network = config.network.map(GuestNetwork::open).transpose()?;
    if let Some(network) = &mut network {
        resolver::set_name_server()?;
        network.start();
    }
    Ok((config, network))
}

/// Keeps the agent running when user processes use up all memory. The serving child inherits the OOM score.
fn protect_agent() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    // All processes of root share one epoll limit. A call as root must not use up the watches that the agent needs.
    fs::write("/proc/sys/fs/epoll/max_user_watches", EPOLL_WATCHES_MAX)?;
    cgroups::set_up(sysinfo()?.ram_total())
}
