// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of suspended and saved environments.

use std::time::Duration;

use clap::{Args, ValueEnum};
use waggle_shared::disk_reserve::DiskReserve;

use super::{access::size, duration};
use crate::saved::SavedLimits;

/// The settings of suspended and saved environments.
#[derive(Args, Clone, Debug)]
pub struct SavedSettings {
    /// End of idle environments: destroy, or suspend, which keeps the machine on the disk until the next call
    #[arg(long, default_value = "destroy", value_name = "destroy|suspend", hide_possible_values = true)]
    pub idle: AtEnd,
    /// End of the environments when the server is stopped: destroy, or suspend, so that the next start brings them
    /// back; with --stdio they are always destroyed
    #[arg(long, default_value = "destroy", value_name = "destroy|suspend", hide_possible_values = true)]
    pub on_stop: AtEnd,
    /// Maximum number of saved environments per name in the token file, 0 to 1000; 0 disables saving; suspended
    /// environments count against --max-environments instead
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000), value_name = "COUNT")]
    pub saved_per_owner: u32,
    /// Maximum disk space of all saved environments together, in GiB, 1 to 1048576, without suspended ones; one of
    /// several callers may use half of it
    #[arg(long, default_value_t = 20, value_name = "GIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub saved_max_gb: u32,
    /// Time after which a saved or suspended environment is removed
    #[arg(long, default_value = "720h", value_parser = duration::parse, value_name = "DURATION")]
    pub saved_max_age: Duration,
}

/// The end of an environment that is idle, or whose server is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AtEnd {
    Destroy,
    Suspend,
}

impl SavedSettings {
    /// Returns the limits of the store of saved machines. The `reserve` must remain free on its disk.
    #[must_use]
    pub fn limits(&self, reserve: DiskReserve) -> SavedLimits {
        SavedLimits {
            per_owner: size(self.saved_per_owner),
            bytes: u64::from(self.saved_max_gb) << 30,
            age: self.saved_max_age,
            reserve,
        }
    }
}
