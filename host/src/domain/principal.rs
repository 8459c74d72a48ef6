// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Principals: the callers of the server, identified by the names that the operator gave them.

use std::{fmt, str::FromStr};

/// An owner of environments. Owners cannot see or use each other's environments.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Principal(String);

/// Names of principals that are not callers with a token.
const ANONYMOUS: &str = "anonymous";
const LOCAL: &str = "local";

impl Principal {
    /// Returns the principal of every caller on a server without tokens.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.to_owned())
    }

    /// Returns the principal of the client that started the server and uses its standard input and output.
    #[must_use]
    pub fn local() -> Self {
        Self(LOCAL.to_owned())
    }
}

impl Principal {
    /// Returns the principal with this name, as [`fmt::Display`] wrote it, also one without a token.
    #[must_use]
    pub fn stored(name: &str) -> Option<Self> {
        match name {
            ANONYMOUS => Some(Self::anonymous()),
            LOCAL => Some(Self::local()),
            _ => name.parse().ok(),
        }
    }
}

/// Maximum number of characters of a name: enough for a person or a service, and short enough for a line of the log.
pub const PRINCIPAL_CHARS_MAX: usize = 64;

impl FromStr for Principal {
    type Err = PrincipalFault;

    fn from_str(name: &str) -> Result<Self, PrincipalFault> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
        let fits = (1..=PRINCIPAL_CHARS_MAX).contains(&name.len()) && name.bytes().all(allowed);
        match fits {
            _ if [ANONYMOUS, LOCAL].contains(&name) => Err(PrincipalFault::Reserved),
            true => Ok(Self(name.to_owned())),
            false => Err(PrincipalFault::Invalid),
        }
    }
}

/// An invalid name of a principal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PrincipalFault {
    #[error("a name must have 1 to {PRINCIPAL_CHARS_MAX} letters, digits, dots, dashes, underscores and at signs")]
    Invalid,
    /// The name of a principal without a token.
    #[error("the names \"{ANONYMOUS}\" and \"{LOCAL}\" are reserved for callers without a token; choose another name")]
    Reserved,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_invalid_names() {
        assert_eq!("ada@example.org".parse::<Principal>().unwrap().to_string(), "ada@example.org");
        for name in ["", "a b", "a\n", "ä", &"a".repeat(65)] {
            assert_eq!(name.parse::<Principal>(), Err(PrincipalFault::Invalid), "{name}");
        }
        for name in [Principal::anonymous(), Principal::local()] {
            assert_eq!(Principal::stored(&name.to_string()), Some(name.clone()));
            assert_eq!(name.to_string().parse::<Principal>(), Err(PrincipalFault::Reserved));
        }
    }
}
