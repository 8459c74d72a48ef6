// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Durations in Go's format: `30s`, `2m`, `1h30m`, `1.5h`, `250ms`.

use std::time::Duration;

/// Go's units and their lengths in nanoseconds.
const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Upper bound of a duration. A longer duration is a mistake, and adding it to the current time could overflow.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Parses a duration above zero.
///
/// # Errors
/// [`DurationFault`] describes a valid duration.
pub fn parse(text: &str) -> Result<Duration, DurationFault> {
    let mut nanoseconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or(DurationFault::Malformed)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: f64 = number.parse().map_err(|_| DurationFault::Malformed)?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationFault::Malformed)?;
        nanoseconds += number * factor;
        rest = after;
    }
    let duration = Duration::try_from_secs_f64(nanoseconds / 1e9).map_err(|_| DurationFault::TooLong)?;
    if duration.is_zero() {
        return Err(DurationFault::Malformed);
    }
    if duration > DURATION_MAX { Err(DurationFault::TooLong) } else { Ok(duration) }
}

/// Formats a duration like Go's `String`, to the millisecond: `30m0s`, `1h0m0s`, `1.5s`, `250ms`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let (seconds, milliseconds) = (duration.as_secs(), duration.subsec_millis());
    let fraction = format!("{milliseconds:03}");
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) if milliseconds > 0 => format!("{milliseconds}ms"),
        (0, 0, s) => format!("{s}{dot}{fraction}s"),
        (0, m, s) => format!("{m}m{s}{dot}{fraction}s"),
        (h, m, s) => format!("{h}h{m}m{s}{dot}{fraction}s"),
    }
}

/// An invalid duration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationFault {
    /// The text is malformed, or the duration is zero.
    #[error("must be a number above zero with a unit, such as 30s, 5m or 1h30m")]
    Malformed,
    /// The duration exceeds the upper bound.
    #[error("must be at most 366 days")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_format_of_go() {
        for (text, seconds, written) in [
            ("30s", 30.0, "30s"),
            ("5m", 300.0, "5m0s"),
            ("30m0s", 1800.0, "30m0s"),
            ("1h30m", 5400.0, "1h30m0s"),
            ("1.5h", 5400.0, "1h30m0s"),
            ("168h", 604_800.0, "168h0m0s"),
            ("250ms", 0.25, "250ms"),
            ("1.5s", 1.5, "1.5s"),
            ("1m0.05s", 60.05, "1m0.05s"),
        ] {
            let duration = parse(text).unwrap();
            assert_eq!(duration, Duration::from_secs_f64(seconds), "{text}");
            assert_eq!(format(duration), written);
        }
    }

    #[test]
    fn rejects_invalid_durations() {
        for text in ["", "30", "s", "-5s", "5 s", "1d", "0s", "1..5s", "5S", "1h30", "ms", "+5s", "infs", "1e3s"] {
            assert_eq!(parse(text), Err(DurationFault::Malformed), "{text}");
        }
        assert_eq!(parse("9000h"), Err(DurationFault::TooLong));
        assert_eq!(parse(&format!("{}h", "9".repeat(400))), Err(DurationFault::TooLong));
    }
}
