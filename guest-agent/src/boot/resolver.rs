// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes the machine's name server to `/etc/resolv.conf`. Images expect their runtime to write this file.

use std::path::Path;

use waggle_protocol::egress::HOST_ADDRESS;

use super::replace::replace;
use crate::step::StepFault;

/// Replaces the image's file, which is often a link to a file that a daemon would write.
pub(super) fn set_name_server() -> Result<(), StepFault> {
    replace(Path::new("/etc/resolv.conf"), &format!("nameserver {HOST_ADDRESS}\n"))
}
