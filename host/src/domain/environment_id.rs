// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The id of an environment.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The id of an environment, never reused: a random (version 4) UUID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EnvironmentId(Uuid);

impl EnvironmentId {
    /// Creates a new id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for EnvironmentId {
    type Err = EnvironmentIdFault;

    /// Parses only the hyphenated form that [`fmt::Display`] writes, in upper or lower case.
    fn from_str(text: &str) -> Result<Self, EnvironmentIdFault> {
        let id = Uuid::try_parse(text).map_err(|_| EnvironmentIdFault)?;
        if id.hyphenated().to_string().eq_ignore_ascii_case(text) { Ok(Self(id)) } else { Err(EnvironmentIdFault) }
    }
}

/// An invalid environment id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid id; must look like 123e4567-e89b-42d3-a456-426614174000")]
pub struct EnvironmentIdFault;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_survives_a_round_trip() {
        let id = EnvironmentId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn rejects_other_notations() {
        for text in ["", "x", "123e4567e89b42d3a456426614174000", "{123e4567-e89b-42d3-a456-426614174000}"] {
            assert_eq!(text.parse::<EnvironmentId>(), Err(EnvironmentIdFault), "{text}");
        }
    }
}
