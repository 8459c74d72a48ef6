// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Times and file modes as text.

use std::time::SystemTime;

use jiff::Timestamp;

/// Formats a time as RFC 3339, in UTC and whole seconds. A time before the epoch becomes the epoch.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    rfc3339_unix(i64::try_from(seconds).unwrap_or_default())
}

/// Formats seconds since the epoch as RFC 3339. A guest may send any number; a number out of range becomes the epoch.
pub(super) fn rfc3339_unix(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Formats type and permissions as `ls -l` does: `-rwxr-xr-x`.
pub(super) fn mode_text(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let letters = (0..9).map(|index| {
        let letter = ['r', 'w', 'x'].into_iter().cycle().nth(index).unwrap_or('-');
        if mode & (0o400 >> index) == 0 { '-' } else { letter }
    });
    let mut text: Vec<char> = std::iter::once(kind).chain(letters).collect();
    for (bit, position, letter) in [(0o4000, 3, 's'), (0o2000, 6, 's'), (0o1000, 9, 't')] {
        if let Some(place) = text.get_mut(position).filter(|_| mode & bit != 0) {
            *place = if *place == 'x' { letter } else { letter.to_ascii_uppercase() };
        }
    }
    text.into_iter().collect()
}

pub(super) fn is_folder(mode: u32) -> bool {
    mode & 0o170_000 == 0o040_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_text_matches_ls() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o100_755, "-rwxr-xr-x"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o041_777, "drwxrwxrwt"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn times_are_in_seconds_and_utc() {
        assert_eq!(rfc3339_unix(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_unix(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
