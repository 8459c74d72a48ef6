// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A machine of `msb_krun`, a fork of libkrun with a Rust interface.
//!
//! `msb_krun` 0.1.42 loses data without an error if a guest writes more than 32 KiB to a vsock connection at once. The
//! guest agent writes at most 28 KiB at once (`waggle_protocol::generation`). A connection also stalls unless the
//! guest's buffer is larger than 4 MiB; the agent's has 8 MiB (`guest-agent/src/dial.rs`).

mod links;
mod root;

use std::{fs::OpenOptions, io, panic, process, sync::Arc};

use msb_krun::{CacheMode, SyncMode, Vm, VmBuilder};
use rustix::stdio;
use waggle_protocol::{CALL_PORT, EGRESS_PORT};

use self::links::Links;
pub(super) use self::root::Root;
use super::{firmware, guest_files::INIT};
use crate::machines::{file_names::LINK_SOCKETS, runner_messages::MachineConfig};

/// The tag of the initial root's file system.
const ROOT_TAG: &str = "/dev/root";

/// Directs the standard descriptors to `/dev/null`, because `msb_krun` gives the guest ports that lead to them. The log
/// has its own copies; the guest's console and panics of `msb_krun` arrive there. A panic ends the process.
pub(super) fn separate_output() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    stdio::dup2_stdout(&null)?;
    stdio::dup2_stderr(&null)?;
    panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        // Other threads would go on without the one that panicked, and this one would return into the runner's code.
        process::abort();
    }));
    Ok(())
}

/// Describes the machine to `msb_krun`. The confined process has loaded the firmware already.
pub(super) fn describe(machine: &MachineConfig, root: Root) -> io::Result<Vm> {
    let cpus = u8::try_from(machine.cpus).map_err(io::Error::other)?;
    let memory_mib = usize::try_from(machine.memory_mib).map_err(io::Error::other)?;
    let links = Links::default();
    // A machine without a network has no listener for the egress port, so the guest's connection fails.
    let link = |port: u32| Arc::new(links.to(format!("{LINK_SOCKETS}_{port}").into()));
    VmBuilder::new()
        .machine(|it| {
            it.vcpus(cpus)
                .memory_mib(memory_mib)
                .nested_virt(false)
                .balloon_stats_interval(None)
                .msb_metrics(false)
                .enable_inet_hijack(false)
        })
        // The name of the loaded library, so no file is opened.
        .kernel(|it| it.krunfw_path(firmware::NAME).init_path(INIT))
        .fs(|it| it.tag(ROOT_TAG).custom(Box::new(root)))
        // Other formats than raw, the default, can refer to further files of the host. Scratch disks are deleted, so a
        // guest's flush need not reach the host's disk.
        .disk(|it| it.id("image").path(&machine.image).read_only(true).cache(CacheMode::Unsafe).sync(SyncMode::None))
        .disk(|it| it.id("scratch").path(&machine.scratch).cache(CacheMode::Unsafe).sync(SyncMode::None))
        .vsock(|it| it.custom(CALL_PORT, link(CALL_PORT)).custom(EGRESS_PORT, link(EGRESS_PORT)))
        .build()
        .map_err(io::Error::other)
}

/// Turns this process into the machine: the process exits when the machine ends. Returns only if `msb_krun` failed to
/// start the machine, or to watch its devices.
pub(super) fn enter(vm: Vm) {
    let Err(fault) = vm.enter();
    log::error!("{fault}");
}
