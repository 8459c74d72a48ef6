// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The control group that this process is in.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the kernel shows control groups, on hosts that have the unified hierarchy.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Its folder, which need not be visible from here; none without control groups of version 2.
pub(crate) fn own() -> Option<PathBuf> {
    let told = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = told.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(CONTROL_GROUPS).join(group))
}
