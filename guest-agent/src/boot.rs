// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The boot of PID 1: from the kernel's start of the program to a serving agent.
//!
//! ```text
//!   kernel ─▶ PID 1, in the initial root
//!              ports to the host, image (EROFS, read-only) + scratch (ext4) = overlay, which becomes /
//!              fork ─▶ child: the image's agent if configured, else this program; connects to the host, serves
//!              reap until the child has exited, then end the machine
//! ```
//!
//! The boot sets up nothing that is specific to one machine, because the machine's memory may be copied later. The
//! serving child makes the machine one of its own when it gets the host's welcome.
//!
//! PID 1 stays single-threaded. If the boot fails, PID 1 reports the reason on the console and ends the machine.

mod certificates;
mod disks;
mod folder;
mod kernel_settings;
mod login_shells;
mod replace;
mod resolver;
mod root;
mod root_home;
mod serving;
mod users;

use std::{fs, io, process::ExitCode};

use nix::sys::sysinfo::sysinfo;
use waggle_protocol::boot::{BOOT_CONFIG_PATH, BootConfig, Transport};

pub use self::serving::{SERVE, serve_from_image};
use crate::{
    cgroups,
    command_settings::path_of,
    console::{report, with_cause},
    host_links::HostLinks,
    network::GuestNetwork,
    npm, ports, reaper,
    step::{StepFault, WithStep},
    sys,
};

/// Runs PID 1. Returns only if the machine could not be ended.
#[must_use]
pub fn run() -> ExitCode {
    match prepare() {
        Ok((config, mut links)) => match serving::start(&config, config.image_agent.as_deref(), &mut links) {
            Ok(first) => {
                let second = |links: &mut HostLinks| serving::start(&config, None, links);
                reaper::reap_until_exit(first, config.image_agent.is_some().then_some(second), &mut links);
            }
            Err(errno) => report(&format!("failed to start the serving child: {errno}")),
        },
        Err(fault) => report(&with_cause(&fault)),
    }
    reaper::end_machine();
    ExitCode::FAILURE
}

/// Sets up the machine except for the serving child.
fn prepare() -> Result<(BootConfig, HostLinks), StepFault> {
    root::mount_initial()?;
    let bytes = fs::read(BOOT_CONFIG_PATH).step(|| format!("read {BOOT_CONFIG_PATH}"))?;
    let mut config = serving::decode(&bytes).step(|| format!("decode {BOOT_CONFIG_PATH}"))?;
    let calls = (config.transport == Transport::Serial).then(ports::open_calls).transpose()?;
    let has_egress_port = config.transport == Transport::Serial && config.network.is_some();
    let egress = has_egress_port.then(ports::open_egress).transpose()?;
    disks::mount_root()?;
    root::switch_root()?;
    root::mount_in_root()?;
    let path = path_of(&config.env);
    root_home::set_up(path)?;
    users::set_up_sandbox_user()?;
    login_shells::keep_search_path(path);
    npm::set_prefix(path);
    kernel_settings::apply(sysinfo().step(|| "read the size of the memory".to_owned())?.ram_total())
        .step(|| "apply the kernel's settings".to_owned())?;
    protect_agent().step(|| "set up the control groups".to_owned())?;
    sys::set_loopback_up().step(|| "set the loopback device up".to_owned())?;
    // The image's own variables follow in the list, so they override these certificate variables.
    config.env.splice(0..0, certificates::trust(&std::mem::take(&mut config.ca_bundle))?);
    let network = config.network.map(|network| GuestNetwork::open(network, egress)).transpose()?;
    if network.is_some() {
        resolver::set_name_server();
    }
    let mut links = HostLinks { calls, network };
    links.start_network();
    Ok((config, links))
}

/// Keeps the agent running when user processes use up all memory. The serving child inherits the OOM score.
fn protect_agent() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    cgroups::set_up(sysinfo()?.ram_total())
}
