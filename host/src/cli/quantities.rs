// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sizes and ages for people to read.

use std::time::{SystemTime, UNIX_EPOCH};

/// Formats a number of bytes in decimal units, as registries do: `48.3 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // `tenths` is the size in tenths of `unit`.
    let (mut tenths, mut unit) = (bytes / 100, "kB");
    for larger in UNITS.iter().skip(1) {
        if tenths < 10_000 {
            break;
        }
        (tenths, unit) = (tenths / 1000, larger);
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Formats the time since `unix_s`: `5 minutes ago`.
pub(super) fn age(unix_s: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    since(now.saturating_sub(unix_s))
}

fn since(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_readable() {
        for (size, expected) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (48_349_999, "48.3 MB"), (999_999, "999.9 kB")]
        {
            assert_eq!(bytes(size), expected);
        }
        assert_eq!(bytes(1_500_000_000), "1.5 GB");
        assert_eq!(bytes(u64::MAX), "18446744.0 TB");
        for (seconds, expected) in [(5, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (86_400, "1 day ago")]
        {
            assert_eq!(since(seconds), expected);
        }
    }
}
