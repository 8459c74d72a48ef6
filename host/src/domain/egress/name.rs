// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Host names in lookups of guests and in rules.

use std::{fmt, str::FromStr};

/// Maximum number of characters of a name, without the final dot (RFC 1035).
const NAME_CHARS_MAX: usize = 253;

/// Maximum number of characters of one label (RFC 1035).
const LABEL_CHARS_MAX: usize = 63;

/// A DNS name in lower case, without a final dot. It cannot be parsed as an address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DomainName(Box<str>);

impl DomainName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name that a name such as `_sip._tcp.example.org` describes: the one without the first label, or the
    /// first two labels, that begin with an underscore (RFC 8552). Returns `None` if the name does not begin so.
    #[must_use]
    pub fn without_service(&self) -> Option<Self> {
        let strip = |name: &'_ str| -> Option<usize> { name.strip_prefix('_')?.find('.').map(|dot| dot + 2) };
        let first = strip(&self.0)?;
        let second = self.0.get(first..).and_then(strip).unwrap_or(0);
        self.0.get(first + second..).map(|name| Self(name.into()))
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
        // If the last label starts with a digit, resolvers may parse the whole name as an address.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(DomainNameFault::Address);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

/// An invalid host name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DomainNameFault {
    /// Empty or too long.
    #[error("a name must have 1 to {NAME_CHARS_MAX} characters, not {bytes}")]
    Length { bytes: usize },
    /// An invalid part between dots.
    #[error(
        "each part of a name between dots must have 1 to {LABEL_CHARS_MAX} letters, digits, hyphens and underscores, \
         and must not start with a hyphen (international names must be in their xn-- form)"
    )]
    Label,
    /// A name that could be parsed as an address.
    #[error(
        "the last part of a name must not start with a digit (if this is an IPv4 address, it must have four numbers)"
    )]
    Address,
}

/// A single name, or all names below a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum NamePattern {
    /// Exactly this name.
    Exact(DomainName),
    /// All names that end in a dot followed by this name.
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
