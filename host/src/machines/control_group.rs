// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Finds the control group of this process.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Mount point of control groups version 2.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Returns the folder of this process's control group, or `None` if the host has no control groups of version 2. The
/// folder may be invisible to this process.
pub(crate) fn own() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(CONTROL_GROUPS).join(group))
}
