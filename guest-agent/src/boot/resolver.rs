// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Names the machine's name server in `/etc/resolv.conf`, which images leave to whoever runs them.

use std::{fs, io};

use waggle_protocol::egress::HOST_ADDRESS;

use super::{BootFault, Step};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Puts the machine's own file in the place of whatever the image has there: a link to a daemon's file, as a rule.
pub(super) fn name_server() -> Result<(), BootFault> {
    let write = || {
        fs::create_dir_all("/etc")?;
        match fs::remove_file(RESOLV_CONF) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
            Ok(()) | Err(_) => {}
        }
        fs::write(RESOLV_CONF, format!("nameserver {HOST_ADDRESS}\n"))
    };
    write().step(|| format!("write {RESOLV_CONF}"))
}
