// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The stages of a machine's start, and the progress within a stage.

use std::fmt;

use waggle_images::progress::{Progress, Step};

/// The stages of a start, in their order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Preparing the image: looking it up in the cache, before any pull or merge.
    Image,
    /// Pulling missing parts of the image from its registry.
    Pull(Amount),
    /// Merging the image's layers, unless they are already merged.
    Merge(Amount),
    /// Making the scratch disk and the initial root.
    Disks,
    /// Booting the virtual machine.
    Boot,
}

impl Stage {
    /// Describes the stage for people, for example "preparing the image".
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Image => "preparing the image",
            Self::Pull(_) => "pulling the image",
            Self::Merge(_) => "merging the image's layers",
            Self::Disks => "making the disks",
            Self::Boot => "booting the machine",
        }
    }

    /// Returns the progress within the stage, if known.
    #[must_use]
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Pull(amount) | Self::Merge(amount) => Some(amount),
            Self::Image | Self::Disks | Self::Boot => None,
        }
    }
}

impl From<Progress> for Stage {
    fn from(Progress { step, done_bytes, total_bytes }: Progress) -> Self {
        let amount = Amount { done: done_bytes, total: total_bytes };
        match step {
            Step::Pull => Self::Pull(amount),
            Step::Merge => Self::Merge(amount),
        }
    }
}

/// Progress in bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Amount {
    /// Bytes done.
    pub done: u64,
    /// Bytes in total.
    pub total: u64,
}

impl Amount {
    /// Returns the completed fraction of the total, from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        let thousandths = u128::from(self.done) * 1000 / u128::from(self.total.max(1));
        f64::from(u16::try_from(thousandths).unwrap_or(1000).min(1000)) / 1000.0
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: u64 = 1_000_000;
        let tenths = |bytes: u64| (bytes / MB, bytes % MB / (MB / 10));
        let ((done, done_tenths), (total, total_tenths)) = (tenths(self.done), tenths(self.total));
        write!(f, "{done}.{done_tenths} of {total}.{total_tenths} MB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amount_is_shown_in_megabytes() {
        assert_eq!(Amount { done: 1_250_000, total: 40_000_000 }.to_string(), "1.2 of 40.0 MB");
    }
}
