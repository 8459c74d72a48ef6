// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environment variables that a caller gives its command, checked for what no command could be started with.

use std::collections::BTreeMap;

/// Most variables of one command. Programs are configured with a few dozen at the most.
pub const VARIABLES_MAX: usize = 256;

/// Names and values of one command's variables, in bytes: with its arguments they travel in one message of 128 KiB.
pub const VARIABLES_BYTES_MAX: usize = 64 * 1024;

/// Part of an unfit name that is shown to its sender, in characters.
const SHOWN_CHARS_MAX: usize = 64;

/// Variables that a command can be started with. None of them decides which program that is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Checks variables that a client sent.
    ///
    /// # Errors
    /// [`VariablesFault`] says which rule they break.
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

    /// Name and value of each.
    #[must_use]
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// POSIX, "Environment Variable Definition": what every shell can refer to.
fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

/// Why variables cannot be set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VariablesFault {
    /// More than the limit.
    #[error("{count} variables are too many; the maximum is {VARIABLES_MAX}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Longer than the limit.
    #[error(
        "{bytes} bytes of names and values are too many; the maximum is {VARIABLES_BYTES_MAX}; use stdin or a file"
    )]
    TooLong {
        /// Their length.
        bytes: usize,
    },
    /// No name.
    #[error("{name:?} cannot name a variable; a name has letters, digits and _ and does not begin with a digit")]
    Name {
        /// Its beginning.
        name: String,
    },
    /// The call's own program is found with it.
    #[error("PATH cannot be set, as the interpreter is found with it; set it in the code for what that starts")]
    Path,
    /// No variable can hold a NUL.
    #[error("the value of {name} holds a NUL character; no variable can")]
    Nul {
        /// The variable.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, VariablesFault> {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Variables::parse(variables).map(Variables::into_pairs)
    }

    #[test]
    fn variables_are_kept_with_any_text_in_them() {
        let pairs = [("HOME", "/tmp"), ("_x1", "a=b\n\"ä\""), ("empty", "")];
        let owned: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(parse(&pairs), Ok(owned));
    }

    #[test]
    fn variables_that_no_command_can_have_are_refused_with_their_reason() {
        for name in ["", "1x", "a b", "a=b", "ä", "a\0", "a-b"] {
            assert_eq!(parse(&[(name, "")]), Err(VariablesFault::Name { name: name.to_owned() }));
        }
        assert_eq!(parse(&[("PATH", "/bin")]), Err(VariablesFault::Path));
        assert_eq!(parse(&[("A", "b\0c")]), Err(VariablesFault::Nul { name: "A".to_owned() }));
    }

    #[test]
    fn variables_are_bounded_in_number_and_size() {
        let names: Vec<_> = (0..=VARIABLES_MAX).map(|number| format!("V{number}")).collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert_eq!(parse(&pairs), Err(VariablesFault::TooMany { count: VARIABLES_MAX + 1 }));
        assert_eq!(parse(&pairs[1..]).map(|all| all.len()), Ok(VARIABLES_MAX));
        let long = "x".repeat(VARIABLES_BYTES_MAX);
        assert_eq!(parse(&[("A", &long)]), Err(VariablesFault::TooLong { bytes: VARIABLES_BYTES_MAX + 1 }));
        assert_eq!(parse(&[("A", &long[1..])]).map(|all| all.len()), Ok(1));
    }
}
