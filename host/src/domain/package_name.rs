// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The names of packages that a client asks to install.
//!
//! One grammar serves all package managers. The grammar does not enforce each manager's rules; it rejects everything
//! that a manager could parse as an option, a URL or a path.
//!
//! Blanks and commas separate packages, and the list may be written in JSON. A package cannot begin with an operator,
//! so blanks and commas before an operator belong to the package before it.
//!
//! ```text
//! list      = JSON list of strings | "[" packages "]" | packages
//! packages  = *(blank | ",") (package | quote packages quote) ...
//! package   = name [extras] [versions] | npm ["@" (range | "npm:" npm ["@" range])]
//! npm       = name | "@" name "/" name             npm's scopes
//! extras    = "[" name *("," name) "]"             pip's extras
//! versions  = operator version *("," operator version)
//! range     = comparators *("||" comparators)      npm's ranges
//! comparators = [operator] version *(blank operator version)
//! name      = alphanumeric *(alphanumeric | "." | "_" | "-" | "+")
//! version   = (alphanumeric | "*") *(alphanumeric | "." | "_" | "-" | "+" | "*")
//! operator  = one or two of > < = ! ~, in a range also of ^
//! ```
//!
//! Names and versions do not end with "-".

mod parser;

use std::fmt;

use serde_json::Value;

use self::parser::Parser;

/// Maximum number of packages in one call. A longer list is probably a mistake. The limit also keeps the command line
/// far below the kernel's limit.
pub const PACKAGES_MAX: usize = 100;

/// Maximum bytes of a name with its version. No known package index allows longer names.
pub const PACKAGE_NAME_BYTES_MAX: usize = 256;

/// Maximum bytes of the list: more than twice the longest list that the other limits allow. It keeps the memory for a
/// list in JSON small.
pub const LIST_BYTES_MAX: usize = 64 * 1024;

/// Maximum characters of a list's invalid element in an error: enough to recognize it.
const ELEMENT_SHOWN_CHARS_MAX: usize = 60;

/// The ends of names that package managers take for files in the working directory.
const FILE_ENDINGS: &[&str] = &[
    ".whl", ".zip", ".egg", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".lz", ".lzma", ".tlz", ".zst",
    ".deb", ".rpm", ".apk",
];

/// The name of one package, optionally with extras and a version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackageName(String);

impl PackageName {
    /// Returns the name in the form that package managers expect: without quotes, and with a single blank between two
    /// comparators of npm's as the only blank.
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

/// Parses a client's list of names. One invalid name rejects the whole list.
///
/// # Errors
/// [`PackagesFault`]: an invalid name, no name, or a list beyond the limits.
pub fn parse_packages(list: &str) -> Result<Vec<PackageName>, PackagesFault> {
    if list.len() > LIST_BYTES_MAX {
        return Err(PackagesFault::ListTooLong { bytes: list.len() });
    }
    let list = list.trim();
    let mut names = Vec::new();
    if let Ok(elements) = serde_json::from_str::<Vec<Value>>(list) {
        for element in &elements {
            let text = element.as_str().ok_or_else(|| PackagesFault::not_a_string(element))?;
            read(text, true, &mut names)?;
        }
    } else {
        let inner = list.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
        read(inner.unwrap_or(list), true, &mut names)?;
    }
    match names.len() {
        0 => Err(PackagesFault::None),
        1..=PACKAGES_MAX => Ok(names),
        count => Err(PackagesFault::TooMany { count }),
    }
}

/// Reads packages up to the end of the text.
fn read(text: &str, may_quote: bool, names: &mut Vec<PackageName>) -> Result<(), PackagesFault> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(is_separator);
        let Some(first) = rest.chars().next() else { return Ok(()) };
        let mut parser = Parser::new(rest);
        let ended = |rest: &str| rest.is_empty() || rest.starts_with(is_separator);
        if may_quote && matches!(first, '"' | '\'' | '`') {
            let inner = parser.quoted(first).filter(|_| ended(parser.rest()));
            let inner = inner.ok_or_else(|| PackagesFault::of(rest, parser.rest()))?;
            read(inner, false, names)?;
        } else {
            let name = parser.package().filter(|_| ended(parser.rest()));
            let name = name.ok_or_else(|| PackagesFault::of(rest, parser.rest()))?;
            if name.len() > PACKAGE_NAME_BYTES_MAX {
                return Err(PackagesFault::NameTooLong { bytes: name.len() });
            }
            names.push(PackageName(name));
        }
        rest = parser.rest();
    }
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || c == ','
}

/// Whether a package manager could take the name for a file.
fn is_file(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    FILE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Why a list of packages is invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PackagesFault {
    #[error("must not be empty; must be one or more names separated by white space or commas")]
    None,
    #[error("{count} packages are too many; must be at most {PACKAGES_MAX} in one call")]
    TooMany { count: usize },
    #[error("a list of {bytes} bytes is too long; must be at most {LIST_BYTES_MAX} bytes")]
    ListTooLong { bytes: usize },
    #[error("a name of {bytes} bytes is too long; must be at most {PACKAGE_NAME_BYTES_MAX} bytes")]
    NameTooLong { bytes: usize },
    /// An element of a JSON list that is not a string.
    #[error("each element of a list must be a string, such as \"requests\"; {element} is not a string")]
    NotAString {
        /// The element's JSON text, shortened.
        element: String,
    },
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

impl PackagesFault {
    /// Returns the fault of a name that begins with `text` and is invalid where `rest` begins.
    fn of(text: &str, rest: &str) -> Self {
        let fault = text.len() - rest.len();
        let end = text.get(fault..).and_then(|rest| rest.find(char::is_whitespace)).map_or(text.len(), |at| fault + at);
        let name = text.get(..end).unwrap_or(text).trim_end();
        if name.len() > PACKAGE_NAME_BYTES_MAX {
            return Self::NameTooLong { bytes: name.len() };
        }
        Self::BadName { name: name.escape_debug().to_string() }
    }

    fn not_a_string(element: &Value) -> Self {
        Self::NotAString { element: element.to_string().chars().take(ELEMENT_SHOWN_CHARS_MAX).collect() }
    }
}

#[cfg(test)]
mod tests;
