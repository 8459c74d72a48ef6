// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Environment variables for a command. Valid variables cannot prevent the start of the command.

use std::collections::BTreeMap;

/// Maximum number of variables of one command. Programs use a few dozen at most.
pub const VARIABLES_MAX: usize = 256;

/// Maximum total bytes of names and values. A message of 128 KiB must hold the variables and the arguments.
pub const VARIABLES_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of characters of an invalid name that an error quotes.
const SHOWN_CHARS_MAX: usize = 64;

/// Valid variables for a command. `PATH` is not among them, because it determines which program runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Checks variables that a client sent.
    ///
    /// # Errors
    /// [`VariablesFault`] names the broken rule.
    pub fn parse(variables: BTreeMap<String, String>) -> Result<Self, VariablesFault> {
        if variables.len() > VARIABLES_MAX {
            return Err(VariablesFault::TooMany { count: variables.len() });
        }
        let bytes = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > VARIABLES_BYTES_MAX {
            return Err(VariablesFault::TooLong { bytes });
        }
        for (name, value) in &variables {
            if !is_name(name) {
                return Err(VariablesFault::Name { name: name.chars().take(SHOWN_CHARS_MAX).collect() });
            }
            if name == "PATH" {
                return Err(VariablesFault::Path);
            }
            if value.contains('\0') {
                return Err(VariablesFault::Nul { name: name.chars().take(SHOWN_CHARS_MAX).collect() });
            }
        }
        Ok(Self(variables.into_iter().collect()))
    }

    /// Returns the names and values.
    #[must_use]
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Whether a text is a name that every shell can refer to (POSIX, "Environment Variable Definition").
fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

/// Why variables are invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VariablesFault {
    #[error("{count} variables are too many; must be at most {VARIABLES_MAX}")]
    TooMany { count: usize },
    #[error(
        "the names and values have {bytes} bytes; at most {VARIABLES_BYTES_MAX} are allowed; pass large data in stdin \
         or in a file"
    )]
    TooLong { bytes: usize },
    #[error("invalid name {name:?}; must be letters, digits and _, and must not start with a digit")]
    Name {
        /// The name, shortened.
        name: String,
    },
    /// `PATH` is set, although waggle finds the interpreter through `PATH`.
    #[error("PATH must not be set, because waggle finds the interpreter through PATH; set PATH in the code instead")]
    Path,
    /// A NUL character in a value.
    #[error("the value of {name} must not contain NUL characters")]
    Nul { name: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, VariablesFault> {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Variables::parse(variables).map(Variables::into_pairs)
    }

    #[test]
    fn keeps_line_breaks_quotes_and_unicode_in_values() {
        let pairs = [("HOME", "/tmp"), ("_x1", "a=b\n\"ä\""), ("empty", "")];
        let owned: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(parse(&pairs), Ok(owned));
    }

    #[test]
    fn rejects_invalid_variables() {
        for name in ["", "1x", "a b", "a=b", "ä", "a\0", "a-b"] {
            assert_eq!(parse(&[(name, "")]), Err(VariablesFault::Name { name: name.to_owned() }));
        }
        assert_eq!(parse(&[("PATH", "/bin")]), Err(VariablesFault::Path));
        assert_eq!(parse(&[("A", "b\0c")]), Err(VariablesFault::Nul { name: "A".to_owned() }));
    }

    #[test]
    fn variables_are_limited_in_number_and_size() {
        let names: Vec<_> = (0..=VARIABLES_MAX).map(|number| format!("V{number}")).collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert_eq!(parse(&pairs), Err(VariablesFault::TooMany { count: VARIABLES_MAX + 1 }));
        assert_eq!(parse(&pairs[1..]).map(|all| all.len()), Ok(VARIABLES_MAX));
        let long = "x".repeat(VARIABLES_BYTES_MAX);
        assert_eq!(parse(&[("A", &long)]), Err(VariablesFault::TooLong { bytes: VARIABLES_BYTES_MAX + 1 }));
        assert_eq!(parse(&[("A", &long[1..])]).map(|all| all.len()), Ok(1));
    }
}
