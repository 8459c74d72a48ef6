// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The keys of saved machines.

use std::fmt;

use super::{
    environment::{EnvironmentName, NameFault},
    environment_id::EnvironmentId,
};

/// The name under which a caller saves an environment, unique for each owner. The rules are those of an environment's
/// name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SavedName(String);

impl SavedName {
    /// Checks a name that a client sent.
    ///
    /// # Errors
    /// [`SavedNameFault`] names the broken rule.
    pub fn parse(name: &str) -> Result<Self, SavedNameFault> {
        match EnvironmentName::parse(name) {
            Ok(_) => Ok(Self(name.to_owned())),
            Err(NameFault::Blank) => Err(SavedNameFault::Blank),
            Err(fault @ (NameFault::TooLong { .. } | NameFault::Control)) => Err(SavedNameFault::Other(fault)),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SavedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the name of a saved environment is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SavedNameFault {
    /// Empty, or only white space.
    #[error("must not be blank")]
    Blank,
    /// The name breaks a rule that it shares with the names of environments.
    #[error(transparent)]
    Other(NameFault),
}

/// The key of a saved machine, unique for each owner.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SavedKey {
    /// A caller saved the environment under this name.
    Name(SavedName),
    /// The server suspended the environment with this id.
    Suspended(EnvironmentId),
}

impl fmt::Display for SavedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "saved environment {name:?}", name = name.as_str()),
            Self::Suspended(id) => write!(f, "suspended environment {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_names_follow_the_rules_of_environment_names() {
        assert_eq!(SavedName::parse("my data ä").unwrap().as_str(), "my data ä");
        assert_eq!(SavedName::parse(" ").unwrap_err().to_string(), "must not be blank");
        assert_eq!(SavedName::parse("a\nb"), Err(SavedNameFault::Other(NameFault::Control)));
        assert_eq!(SavedName::parse(&"x".repeat(65)), Err(SavedNameFault::Other(NameFault::TooLong { chars: 65 })));
    }
}
