// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The processors of the machine that runs the benchmark.

use std::fs;

/// Returns the number of processors and their model.
pub(crate) fn processors() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": an unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    format!("{count} × {model}")
}
