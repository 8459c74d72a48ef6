// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Invalid arguments of a call.

use super::{CallerFault, Fault};
use crate::domain::{
    egress::PolicyFault, environment::NameFault, environment_id::EnvironmentIdFault, guest_path::GuestPathFault,
    package_name::PackagesFault, variables::VariablesFault,
};

/// An invalid argument.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentFault {
    /// An invalid id.
    #[error("environment_id: {0}")]
    Id(EnvironmentIdFault),
    /// An invalid network policy.
    #[error("network: {0}")]
    Network(PolicyFault),
    /// An invalid name.
    #[error("name: {0}")]
    Name(NameFault),
    /// An invalid path.
    #[error("{name}: {source}")]
    Path {
        /// The argument.
        name: &'static str,
        /// The broken rule.
        source: GuestPathFault,
    },
    /// Invalid environment variables.
    #[error("environment: {0}")]
    Variables(VariablesFault),
    /// Invalid package names.
    #[error("packages: {0}")]
    Packages(PackagesFault),
    /// A number above its maximum.
    #[error("{name}: {value} is too large; must be at most {max}")]
    AboveMaximum {
        /// The argument.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The maximum.
        max: f64,
    },
    /// A number that is not an integer, or out of range.
    #[error("{name}: {value} is invalid; must be an integer from {min} to {max}")]
    NotWhole {
        /// The argument.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
    },
    /// Invalid permissions.
    #[error("mode: invalid file mode; must be up to four octal digits in quotes, such as \"0644\" or \"0755\"")]
    Mode,
    /// Invalid base64.
    #[error("content: invalid base64: {reason}; leave encoding out for text")]
    Base64 {
        /// The error of the decoder.
        reason: String,
    },
    /// Empty code.
    #[error("code must not be empty")]
    NoCode,
    /// An argument above its size limit.
    #[error("{name}: {bytes} bytes are too many; must be at most {bytes_max} bytes in one call{advice}")]
    TooLarge {
        /// The argument.
        name: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
        /// Advice on doing it in smaller parts.
        advice: &'static str,
    },
}

impl ArgumentFault {
    /// Checks that an argument is at most `bytes_max` long.
    pub(crate) fn check_size(
        name: &'static str,
        bytes: usize,
        bytes_max: usize,
        advice: &'static str,
    ) -> Result<(), Self> {
        if bytes > bytes_max { Err(Self::TooLarge { name, bytes, bytes_max, advice }) } else { Ok(()) }
    }
}

impl From<ArgumentFault> for CallerFault {
    fn from(fault: ArgumentFault) -> Self {
        Self::Argument(fault)
    }
}

impl From<ArgumentFault> for Fault {
    fn from(fault: ArgumentFault) -> Self {
        Self::Caller(CallerFault::Argument(fault))
    }
}
