// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The caller, by the name that the operator has for it.

use std::{fmt, str::FromStr};

/// Who owns environments. Owners neither see nor touch each other's.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Principal(String);

impl Principal {
    /// The one that every caller is on a server without tokens.
    #[must_use]
    pub fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// The one that started the server and talks to it over its standard input and output.
    #[must_use]
    pub fn local() -> Self {
        Self("local".to_owned())
    }
}

/// Long enough for the name of a person or a service, short enough for a line of the log.
pub const PRINCIPAL_CHARS_MAX: usize = 64;

impl FromStr for Principal {
    type Err = PrincipalFault;

    fn from_str(name: &str) -> Result<Self, PrincipalFault> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
        let fits = (1..=PRINCIPAL_CHARS_MAX).contains(&name.len()) && name.bytes().all(allowed);
        if fits { Ok(Self(name.to_owned())) } else { Err(PrincipalFault) }
    }
}

/// The text does not name a principal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a name has 1 to {PRINCIPAL_CHARS_MAX} letters, digits, dots, dashes, underscores and at signs")]
pub struct PrincipalFault;

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_have_plain_names() {
        assert_eq!("ada@example.org".parse::<Principal>().unwrap().to_string(), "ada@example.org");
        for name in ["", "a b", "a\n", "ä", &"a".repeat(65)] {
            assert_eq!(name.parse::<Principal>(), Err(PrincipalFault), "{name}");
        }
    }
}
