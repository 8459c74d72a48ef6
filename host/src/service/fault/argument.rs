// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Invalid arguments of a call.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use waggle_images::reference::ImageRefError;

use super::{CallerFault, Fault};
use crate::domain::{
    allowed_images::ImageNotAllowed, egress::PolicyFault, environment::NameFault, environment_id::EnvironmentIdFault,
    guest_path::GuestPathFault, package_name::PackagesFault, saved::SavedNameFault, variables::VariablesFault,
};

/// An invalid argument.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentFault {
    #[error("environment_id: {0}")]
    Id(EnvironmentIdFault),
    #[error("fork_of: {0}")]
    ForkOf(EnvironmentIdFault),
    /// An argument that has a meaning only with another one.
    #[error("{name}: only allowed with {other}")]
    OnlyWith { name: &'static str, other: &'static str },
    #[error("network: {0}")]
    Network(PolicyFault),
    #[error("image: {0}")]
    Image(ImageRefError),
    #[error("image: {0}")]
    ImageNotAllowed(ImageNotAllowed),
    #[error("name: {0}")]
    Name(NameFault),
    #[error("{name}: {source}")]
    SavedName { name: &'static str, source: SavedNameFault },
    /// A value that differs from that of the environment's source.
    #[error("{name}: contradicts the environment that this one is made from, which has {own}; omit the argument")]
    Contradiction { name: &'static str, own: String },
    /// The size of a saved environment that the operator no longer allows.
    #[error(
        "{name}: the environment that this one is made from has {own}, above the maximum of {max} of this server; its \
         operator can raise the maximum with {setting}"
    )]
    SourceSize { name: &'static str, own: u32, max: u32, setting: &'static str },
    /// Arguments of which only one may be given.
    #[error("arguments {names} exclude each other; give one of them")]
    Exclusive { names: &'static str },
    #[error("missing argument {names}; one of them is required")]
    OneRequired { names: &'static str },
    #[error("{name}: {source}")]
    Path { name: &'static str, source: GuestPathFault },
    #[error("environment: {0}")]
    Variables(VariablesFault),
    #[error("packages: {0}")]
    Packages(PackagesFault),
    /// A number above its maximum.
    #[error("{name}: {value} is too large; must be at most {max}")]
    AboveMaximum { name: &'static str, value: f64, max: f64 },
    /// A number that is not an integer, or is out of range.
    #[error("{name}: {value} is invalid; must be an integer from {min} to {max}")]
    NotWhole { name: &'static str, value: f64, min: String, max: String },
    /// A size of a machine that is not an integer, or is out of the operator's range.
    #[error(
        "{name}: {value} is invalid; must be an integer from {min} to {max}, the maximum of this server; its operator \
         can raise the maximum with {setting}"
    )]
    Size {
        name: &'static str,
        value: f64,
        min: u32,
        max: u32,
        /// The setting with the maximum.
        setting: &'static str,
    },
    #[error("mode: invalid file mode; must be up to four octal digits in quotes, such as \"0644\" or \"0755\"")]
    Mode,
    #[error("content: invalid base64 ({reason}); for text, omit the argument \"encoding\"")]
    Base64 { reason: String },
    #[error("code must not be empty")]
    NoCode,
    /// An argument above its size limit.
    #[error("{name}: {bytes} bytes are too many; must be at most {bytes_max} bytes in one call{advice}")]
    TooLarge {
        name: &'static str,
        bytes: usize,
        bytes_max: usize,
        /// Advice on splitting the data; appended to the message.
        advice: &'static str,
    },
}

impl ArgumentFault {
    /// Parses an integer that may be sent as a float, such as `5.0`.
    pub(crate) fn whole_number<N>(name: &'static str, value: f64, range: RangeInclusive<N>) -> Result<N, Self>
    where
        N: FromStr + PartialOrd + Copy + Display,
    {
        let whole = value.to_string().parse::<N>().ok();
        whole.filter(|whole| range.contains(whole)).ok_or_else(|| {
            let (min, max) = (range.start().to_string(), range.end().to_string());
            Self::NotWhole { name, value, min, max }
        })
    }

    /// Checks that an argument has at most `bytes_max` bytes.
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
