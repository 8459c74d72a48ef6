// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Names of hosts, as guests ask for them and as rules have them.

use std::{fmt, str::FromStr};

/// Characters of a name, without the dot at its end (RFC 1035).
const NAME_CHARS_MAX: usize = 253;

/// Characters of one label (RFC 1035).
const LABEL_CHARS_MAX: usize = 63;

/// A name of the domain name system: small letters, no dot at the end, and nothing that could be read as an address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DomainName(Box<str>);

impl DomainName {
    /// The name as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = DomainNameFault;

    fn from_str(text: &str) -> Result<Self, DomainNameFault> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > NAME_CHARS_MAX {
            return Err(DomainNameFault::Length { bytes: name.len() });
        }
        let fits = |label: &str| {
            (1..=LABEL_CHARS_MAX).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if !name.split('.').all(fits) {
            return Err(DomainNameFault::Label);
        }
        // Resolvers read a last label of this kind as a number, and the whole as an address.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(DomainNameFault::Address);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

/// A text is no name of a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DomainNameFault {
    /// Empty, or too long.
    #[error("a name has 1 to {NAME_CHARS_MAX} characters, and this has {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A part between dots is not what it can be.
    #[error(
        "between the dots of a name are 1 to {LABEL_CHARS_MAX} letters, digits and hyphens (an international name is \
         written as xn--…)"
    )]
    Label,
    /// It could be read as an address.
    #[error("the last part of a name does not begin with a digit, and an IPv4 address has four numbers")]
    Address,
}

/// A name, or all names under one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum NamePattern {
    /// This name.
    Exact(DomainName),
    /// Names that end in a dot and this one.
    Under(DomainName),
}

impl NamePattern {
    pub(super) fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Under(parent) => {
                let rest = name.as_str().strip_suffix(parent.as_str());
                rest.is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

impl FromStr for NamePattern {
    type Err = DomainNameFault;

    fn from_str(text: &str) -> Result<Self, DomainNameFault> {
        match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Under),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Under(parent) => write!(f, "*.{parent}"),
        }
    }
}
