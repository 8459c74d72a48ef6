// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Environment variables for one command, or for all commands in an environment. Valid variables cannot prevent the
//! start of a command.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::command::User;

/// Maximum number of variables of one command, with those of its environment. Programs use a few dozen at most.
pub const VARIABLES_MAX: usize = 256;

/// Maximum total bytes of names and values, with those of the environment. A message of 128 KiB must hold the variables
/// and the arguments.
pub const VARIABLES_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of characters of an invalid name that an error quotes.
const SHOWN_CHARS_MAX: usize = 64;

/// The variables of an environment that commands of root get. Others can name code that programs load
/// (`LD_PRELOAD`, `APT_CONFIG`, `PERL5LIB`), and the user that sets them is not root.
const ROOT_NAMES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];

/// Valid variables. `PATH` is not among them, because it determines which program runs. The values may be secrets.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Variables(Arc<[(String, String)]>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Variables {
    /// Checks variables that a client sent.
    ///
    /// # Errors
    /// [`VariablesFault`] names the broken rule.
    pub fn parse(variables: BTreeMap<String, String>) -> Result<Self, VariablesFault> {
        if variables.len() > VARIABLES_MAX {
            return Err(VariablesFault::TooMany { count: variables.len() });
        }
        let bytes = bytes(&variables);
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

    /// Returns the names and values, sorted by name.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Returns the variables of a command in an environment that has these variables. The command's own variables take
    /// precedence. A command of root gets only some of the environment's.
    #[must_use]
    pub fn with(&self, own: Vec<(String, String)>, user: User) -> Vec<(String, String)> {
        let is_overridden = |name: &str| own.iter().any(|(other, _)| other == name);
        let is_for =
            |name: &str| user == User::Sandbox || ROOT_NAMES.iter().any(|root| name.eq_ignore_ascii_case(root));
        let of_environment = self.0.iter().filter(|(name, _)| is_for(name) && !is_overridden(name));
        of_environment.cloned().collect::<Vec<_>>().into_iter().chain(own).collect()
    }

    /// Checks the number and the size of a call's own variables together with these.
    ///
    /// # Errors
    /// [`VariablesFault::Together`].
    pub fn check_with(&self, own: &[(String, String)]) -> Result<(), VariablesFault> {
        let both = self.with(own.to_vec(), User::Sandbox);
        let (count, bytes) = (both.len(), bytes(both.iter().map(|(name, value)| (name, value))));
        if count > VARIABLES_MAX || bytes > VARIABLES_BYTES_MAX {
            return Err(VariablesFault::Together { count, bytes });
        }
        Ok(())
    }
}

fn bytes<'a>(variables: impl IntoIterator<Item = (&'a String, &'a String)>) -> usize {
    variables.into_iter().map(|(name, value)| name.len() + value.len()).sum()
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
    /// A call's variables, with those of its environment, exceed the limits of one command.
    #[error(
        "together with the environment's own, the call has {count} variables of {bytes} bytes; at most \
         {VARIABLES_MAX} variables of {VARIABLES_BYTES_MAX} bytes are allowed"
    )]
    Together { count: usize, bytes: usize },
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
        Variables::parse(variables).map(|variables| variables.pairs().to_vec())
    }

    #[test]
    fn keeps_line_breaks_quotes_and_unicode_in_values() {
        let pairs = [("HOME", "/tmp"), ("_x1", "a=b\n\"ä\""), ("empty", "")];
        let owned: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(parse(&pairs), Ok(owned));
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::parse(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()).unwrap()
    }

    #[test]
    fn variables_of_a_call_override_those_of_its_environment() {
        let environment = variables(&[("A", "1"), ("B", "2"), ("LD_PRELOAD", "/x.so"), ("https_proxy", "p")]);
        let own = variables(&[("B", "3"), ("C", "4")]);
        let expected = [("A", "1"), ("LD_PRELOAD", "/x.so"), ("https_proxy", "p"), ("B", "3"), ("C", "4")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(environment.with(own.pairs().to_vec(), User::Sandbox), expected);
    }

    #[test]
    fn root_gets_no_variables_that_can_name_code() {
        let environment =
            variables(&[("LD_PRELOAD", "/x.so"), ("APT_CONFIG", "/x"), ("https_proxy", "p"), ("NO_PROXY", "q")]);
        let names: Vec<_> = environment.with(Vec::new(), User::Root).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["NO_PROXY", "https_proxy"]);
    }

    #[test]
    fn limits_count_the_variables_of_environment_and_call_together() {
        let half = "x".repeat(VARIABLES_BYTES_MAX / 2);
        let environment = variables(&[("A", &half)]);
        assert_eq!(environment.check_with(variables(&[("A", &half)]).pairs()), Ok(()));
        let bytes = VARIABLES_BYTES_MAX + 2;
        let fault = environment.check_with(variables(&[("B", &half)]).pairs()).unwrap_err();
        assert_eq!(fault, VariablesFault::Together { count: 2, bytes });
    }

    #[test]
    fn debug_output_hides_values() {
        assert_eq!(format!("{:?}", variables(&[("TOKEN", "honey")])), r#"["TOKEN"]"#);
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
