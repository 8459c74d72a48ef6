// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The names of packages that a client wants installed.
//!
//! One grammar serves all package managers. What it is for is not to know each manager's rules, but to let nothing
//! through that a manager takes for an option, a URL or a path.
//!
//! ```text
//! package   = name [extras] [versions] | scoped
//! scoped    = "@" name "/" name ["@" tag]          npm's scopes
//! extras    = "[" name *("," name) "]"             pip's extras
//! versions  = operator version *("," operator version) | "@" tag
//! name      = alphanumeric *(alphanumeric | "." | "_" | "-" | "+")
//! version   = 1*(alphanumeric | "." | "_" | "-" | "+" | "*" | ",")
//! tag       = ["^" | "~"] version
//! operator  = one or two of > < = ! ~
//! ```

use std::{fmt, str::FromStr};

/// More in one call is more likely a mistake than a wish, and keeps the command line far below the kernel's limit.
pub const PACKAGES_MAX: usize = 100;

/// No package index known allows names this long, versions included.
pub const PACKAGE_NAME_BYTES_MAX: usize = 256;

/// The name of one package, perhaps with extras and a version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackageName(String);

impl PackageName {
    /// As the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PackageName {
    type Err = PackagesFault;

    fn from_str(text: &str) -> Result<Self, PackagesFault> {
        if text.len() > PACKAGE_NAME_BYTES_MAX {
            return Err(PackagesFault::NameTooLong { bytes: text.len() });
        }
        let rest = if text.starts_with('@') { scoped(text) } else { plain(text) };
        match rest {
            Some("") => Ok(Self(text.to_owned())),
            Some(_) | None => Err(PackagesFault::BadName { name: text.escape_debug().to_string() }),
        }
    }
}

/// Reads the names in a client's list, which white space separates. One bad name refuses them all.
///
/// # Errors
/// [`PackagesFault`] says which name is wrong, or that there are none or too many.
pub fn parse_packages(list: &str) -> Result<Vec<PackageName>, PackagesFault> {
    let count = list.split_whitespace().count();
    if count > PACKAGES_MAX {
        return Err(PackagesFault::TooMany { count });
    }
    let names = list.split_whitespace().map(str::parse).collect::<Result<Vec<PackageName>, _>>()?;
    if names.is_empty() { Err(PackagesFault::None) } else { Ok(names) }
}

/// Why a list of packages is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PackagesFault {
    /// The list has no name.
    #[error("no package is named; give one or more names separated by white space")]
    None,
    /// The list has too many.
    #[error("{count} packages are named; at most {PACKAGES_MAX} can be installed in one call")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A name is too long.
    #[error("a package name has {bytes} bytes; at most {PACKAGE_NAME_BYTES_MAX} are allowed")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A name does not follow the grammar.
    #[error(
        "\"{name}\" is not a package name; right are for example requests, numpy==2.1, \"pandas[excel]>=2,<3\", \
         lodash@4 and @types/node, but no options, URLs or paths; nothing was installed"
    )]
    BadName {
        /// The name, escaped.
        name: String,
    },
}

// Each of these takes its part off the front and returns the rest, or nothing if the part is not there.

fn plain(text: &str) -> Option<&str> {
    let mut rest = name(text)?;
    if let Some(extras) = rest.strip_prefix('[') {
        rest = name(extras)?;
        while let Some(more) = rest.strip_prefix(',') {
            rest = name(more)?;
        }
        rest = rest.strip_prefix(']')?;
    }
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('@').map_or_else(|| constraints(rest), tag) }
}

fn scoped(text: &str) -> Option<&str> {
    let package = name(text.strip_prefix('@')?)?.strip_prefix('/')?;
    let rest = name(package)?;
    if rest.is_empty() { Some(rest) } else { tag(rest.strip_prefix('@')?) }
}

fn constraints(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        let after_operator = rest.trim_start_matches(is_operator);
        if !(1..=2).contains(&(rest.len() - after_operator.len())) {
            return None;
        }
        // The version takes the comma before a further operator with it.
        rest = version(after_operator)?;
        if !rest.starts_with(is_operator) {
            return Some(rest);
        }
    }
}

fn tag(text: &str) -> Option<&str> {
    version(text.strip_prefix(['^', '~']).unwrap_or(text))
}

fn name(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(|c: char| c.is_ascii_alphanumeric())?;
    Some(rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+')))
}

fn version(text: &str) -> Option<&str> {
    let rest =
        text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '*' | ','));
    (rest.len() < text.len()).then_some(rest)
}

fn is_operator(c: char) -> bool {
    matches!(c, '>' | '<' | '=' | '!' | '~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &str) -> Result<Vec<String>, PackagesFault> {
        Ok(parse_packages(list)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_with_versions_scopes_and_extras_are_taken() {
        for name in [
            "requests",
            "numpy==2.1.0",
            "pandas>=2",
            "a>=1,<2",
            "a>=1.0,!=1.5,<2",
            "a~=1.4",
            "a=1.2-3",
            "lodash@4",
            "lodash@4.17.21",
            "lodash@^4",
            "typescript@latest",
            "@types/node",
            "@types/node@20",
            "uvicorn[standard]",
            "a[b,c]>=1",
            "zope.interface",
            "ruamel_yaml",
            "g++",
            "libstdc++6",
            "torch==2.1.0+cu118",
            "x==1.*",
            "0ad",
        ] {
            assert_eq!(names(name), Ok(vec![name.to_owned()]));
        }
    }

    #[test]
    fn options_urls_paths_and_shell_are_refused() {
        for name in [
            "-e",
            "--index-url=https://x",
            "-rfile",
            "https://x/y.whl",
            "git+https://x/y",
            "./a",
            "../a",
            "/a",
            "a/b",
            "@a",
            "@a/b/c",
            "@/b",
            "@a/-b",
            "a;b",
            "a|b",
            "$(a)",
            "`a`",
            "a&b",
            "a[",
            "a[]",
            "a[b",
            "a[b]c",
            "a>",
            "a@",
            "a@-x/y",
            "a===1",
            "a>=1<<<2",
            "\u{e4}",
            "a\u{0}",
            "'a'",
            "file:a",
            "npm:a@1",
            ".a",
            "_a",
            "+a",
        ] {
            assert_eq!(names(name), Err(PackagesFault::BadName { name: name.escape_debug().to_string() }), "{name:?}");
        }
    }

    #[test]
    fn one_bad_name_refuses_all() {
        assert_eq!(names("requests -e numpy"), Err(PackagesFault::BadName { name: "-e".to_owned() }));
    }

    #[test]
    fn white_space_of_any_kind_separates() {
        assert_eq!(names(" a\tb\n\n c "), Ok(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn the_limits_hold() {
        assert_eq!(names(" \n "), Err(PackagesFault::None));
        assert_eq!(names(&"a ".repeat(PACKAGES_MAX)).unwrap().len(), PACKAGES_MAX);
        assert_eq!(names(&"a ".repeat(101)), Err(PackagesFault::TooMany { count: 101 }));
        assert_eq!(names(&"a".repeat(257)), Err(PackagesFault::NameTooLong { bytes: 257 }));
    }

    proptest! {
        #[test]
        fn no_name_can_be_taken_for_an_option_a_path_or_a_url(text in "[-a@/:.=<>\\[\\],+~^$ ]{1,12}") {
            for name in parse_packages(&text).unwrap_or_default() {
                let name = name.as_str();
                prop_assert!(!name.starts_with(['-', '.', '/', '~']));
                prop_assert!(!name.contains([':', '$']));
                prop_assert!(!name.contains('/') || name.starts_with('@'));
            }
        }
    }
}
