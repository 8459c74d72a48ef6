// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Gives the machine its names: images leave `/etc/hosts` to whoever runs them, and servers on `localhost` need it.

use std::{fs, io};

use nix::unistd::sethostname;

use super::{BootFault, Step};

const HOSTS: &str = "/etc/hosts";

/// Sets the host name, and writes a hosts file where the image has none, or an empty one.
pub(super) fn name_machine(hostname: &str) -> Result<(), BootFault> {
    sethostname(hostname).step(|| format!("set the host name {hostname}"))?;
    let is_there = fs::metadata(HOSTS).is_ok_and(|meta| meta.len() > 0);
    if is_there { Ok(()) } else { write_hosts(hostname).step(|| format!("write {HOSTS}")) }
}

fn write_hosts(hostname: &str) -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    fs::write(HOSTS, format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"))
}
