// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the machine's name server to `/etc/resolv.conf`. Images expect their runtime to write this file.

use waggle_protocol::egress::HOST_ADDRESS;

use super::replace::replace;
use crate::console::{report, with_cause};

/// Replaces the image's file, which is often a link to a file that a daemon would write. If the image has a filled
/// folder there, the machine starts without a name server, as it would elsewhere.
pub(super) fn set_name_server() {
    if let Err(fault) = replace("/etc/resolv.conf", &format!("nameserver {HOST_ADDRESS}\n")) {
        report(&with_cause(&fault));
    }
}
