// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sets the machine's host name and writes `/etc/hosts`. Images expect their runtime to write this file, and servers
//! that listen on `localhost` need the file.

use std::{fs, io};

use nix::unistd::sethostname;

use crate::step::{StepFault, WithStep};

const HOSTS: &str = "/etc/hosts";

/// Sets the host name, and writes a hosts file if the image's file is missing or empty.
pub(super) fn name_machine(hostname: &str) -> Result<(), StepFault> {
    sethostname(hostname).step(|| format!("set the host name {hostname}"))?;
    let exists = fs::metadata(HOSTS).is_ok_and(|meta| meta.len() > 0);
    if exists { Ok(()) } else { write_hosts(hostname).step(|| format!("write {HOSTS}")) }
}

fn write_hosts(hostname: &str) -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    fs::write(HOSTS, format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"))
}
