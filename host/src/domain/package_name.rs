// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The names of packages that a client asks to install.
//!
//! One grammar serves all package managers. The grammar does not enforce each manager's rules; it rejects everything
//! that a manager could parse as an option, a URL or a path.
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

/// Maximum number of packages in one call. A longer list is probably a mistake. The limit also keeps the command line
/// far below the kernel's limit.
pub const PACKAGES_MAX: usize = 100;

/// Maximum bytes of a name with its version. No known package index allows longer names.
pub const PACKAGE_NAME_BYTES_MAX: usize = 256;

/// The name of one package, optionally with extras and a version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackageName(String);

impl PackageName {
    /// Returns the name as the client wrote it.
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

/// Parses a client's list of names separated by white space. One invalid name rejects the whole list.
///
/// # Errors
/// [`PackagesFault`]: an invalid name, no name or too many names.
pub fn parse_packages(list: &str) -> Result<Vec<PackageName>, PackagesFault> {
    let count = list.split_whitespace().count();
    if count > PACKAGES_MAX {
        return Err(PackagesFault::TooMany { count });
    }
    let names = list.split_whitespace().map(str::parse).collect::<Result<Vec<PackageName>, _>>()?;
    if names.is_empty() { Err(PackagesFault::None) } else { Ok(names) }
}

/// Why a list of packages is invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PackagesFault {
    #[error("must not be empty; must be one or more names separated by white space")]
    None,
    #[error("{count} packages are too many; must be at most {PACKAGES_MAX} in one call")]
    TooMany { count: usize },
    #[error("a name of {bytes} bytes is too long; must be at most {PACKAGE_NAME_BYTES_MAX} bytes")]
    NameTooLong { bytes: usize },
    /// A name that does not follow the grammar.
    #[error(
        "invalid package name \"{name}\"; must be like requests, numpy==2.1, \"pandas[excel]>=2,<3\", lodash@4 or \
         @types/node, without options, URLs or paths; nothing was installed"
    )]
    BadName {
        /// The name, escaped.
        name: String,
    },
}

// Each of the functions below parses one part of the grammar at the start of the text. It returns the rest of the text,
// or `None` if the part is missing.

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
        // `version` also consumes the comma before the next operator.
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
    fn accepts_versions_scopes_and_extras() {
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
    fn rejects_options_urls_paths_and_shell() {
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
    fn one_invalid_name_rejects_all() {
        assert_eq!(names("requests -e numpy"), Err(PackagesFault::BadName { name: "-e".to_owned() }));
    }

    #[test]
    fn splits_at_any_white_space() {
        assert_eq!(names(" a\tb\n\n c "), Ok(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn rejects_lists_and_names_beyond_the_limits() {
        assert_eq!(names(" \n "), Err(PackagesFault::None));
        assert_eq!(names(&"a ".repeat(PACKAGES_MAX)).unwrap().len(), PACKAGES_MAX);
        assert_eq!(names(&"a ".repeat(101)), Err(PackagesFault::TooMany { count: 101 }));
        assert_eq!(names(&"a".repeat(257)), Err(PackagesFault::NameTooLong { bytes: 257 }));
    }

    proptest! {
        #[test]
        fn valid_names_are_never_options_paths_or_urls(text in "[-a@/:.=<>\\[\\],+~^$ ]{1,12}") {
            for name in parse_packages(&text).unwrap_or_default() {
                let name = name.as_str();
                prop_assert!(!name.starts_with(['-', '.', '/', '~']));
                prop_assert!(!name.contains([':', '$']));
                prop_assert!(!name.contains('/') || name.starts_with('@'));
            }
        }
    }
}
