// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The arguments of create_environment for the size of the machine.

use std::ops::RangeInclusive;

use crate::{
    domain::machine_size::{MachineSize, SizeLimits},
    service::fault::ArgumentFault,
};

/// A size as a client sends it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SizeArguments {
    pub(super) cpus: Option<f64>,
    pub(super) memory_mb: Option<f64>,
    pub(super) disk_mb: Option<f64>,
}

impl SizeArguments {
    /// Returns the size of the machine within the limits of the server's operator.
    pub(super) fn size(self, limits: &SizeLimits) -> Result<MachineSize, ArgumentFault> {
        let SizeLimits { default, .. } = limits;
        Ok(MachineSize {
            cpus: number("cpus", self.cpus, default.cpus, limits.cpus(), "WAGGLE_MAX_CPUS")?,
            memory_mib: number(
                "memory_mb",
                self.memory_mb,
                default.memory_mib,
                limits.memory_mib(),
                "WAGGLE_MAX_MEMORY_MB",
            )?,
            disk_mib: number("disk_mb", self.disk_mb, default.disk_mib, limits.disk_mib(), "WAGGLE_MAX_DISK_MB")?,
        })
    }
}

fn number(
    name: &'static str,
    value: Option<f64>,
    default: u32,
    range: RangeInclusive<u32>,
    setting: &'static str,
) -> Result<u32, ArgumentFault> {
    let Some(value) = value else { return Ok(default) };
    let (min, max) = (*range.start(), *range.end());
    ArgumentFault::whole_number(name, value, range).map_err(|_invalid| ArgumentFault::Size {
        name,
        value,
        min,
        max,
        setting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SizeLimits {
        let default = MachineSize { cpus: 1, memory_mib: 512, disk_mib: 4096 };
        SizeLimits { default, max: MachineSize { cpus: 4, memory_mib: 2048, ..default } }
    }

    #[test]
    fn size_is_the_servers_default_unless_it_is_chosen() {
        assert_eq!(SizeArguments::default().size(&limits()).unwrap(), limits().default);
        let chosen = SizeArguments { cpus: Some(4.0), memory_mb: Some(128.0), disk_mb: Some(64.0) };
        assert_eq!(chosen.size(&limits()).unwrap(), MachineSize { cpus: 4, memory_mib: 128, disk_mib: 64 });
    }

    #[test]
    fn error_for_a_size_names_limit_and_setting() {
        let sizes = |cpus, memory_mb, disk_mb| SizeArguments { cpus, memory_mb, disk_mb };
        for (chosen, expected) in [
            (sizes(Some(5.0), None, None), "cpus: 5 is invalid; must be an integer from 1 to 4"),
            (sizes(Some(0.0), None, None), "cpus: 0 is invalid; must be an integer from 1 to 4"),
            (sizes(Some(1.5), None, None), "cpus: 1.5 is invalid; must be an integer from 1 to 4"),
            (sizes(None, Some(127.0), None), "memory_mb: 127 is invalid; must be an integer from 128 to 2048"),
            (sizes(None, Some(1e300), None), "is invalid; must be an integer from 128 to 2048"),
            (sizes(None, None, Some(4097.0)), "disk_mb: 4097 is invalid; must be an integer from 64 to 4096"),
            (sizes(None, None, Some(f64::NAN)), "disk_mb: NaN is invalid"),
        ] {
            let text = chosen.size(&limits()).unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains("WAGGLE_MAX_"), "{text}");
        }
    }
}
