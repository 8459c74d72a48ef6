// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environment: one isolated Linux machine that a principal owns.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// Names an environment for its whole life and after: a random (version 4) UUID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EnvironmentId(Uuid);

impl EnvironmentId {
    /// A new one, never given before.
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

    /// Reads the hyphenated form that [`fmt::Display`] writes, and no other, so that one environment has one name.
    fn from_str(text: &str) -> Result<Self, EnvironmentIdFault> {
        let id = Uuid::try_parse(text).map_err(|_| EnvironmentIdFault)?;
        if id.hyphenated().to_string().eq_ignore_ascii_case(text) { Ok(Self(id)) } else { Err(EnvironmentIdFault) }
    }
}

/// The text is no environment id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an environment id; it looks like 123e4567-e89b-42d3-a456-426614174000")]
pub struct EnvironmentIdFault;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = EnvironmentId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn other_notations_of_an_id_are_refused() {
        for text in ["", "x", "123e4567e89b42d3a456426614174000", "{123e4567-e89b-42d3-a456-426614174000}"] {
            assert_eq!(text.parse::<EnvironmentId>(), Err(EnvironmentIdFault), "{text}");
        }
    }
}
