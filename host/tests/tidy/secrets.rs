// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Each field or variant that is named like a secret has a type that hides the value in errors and logs.

use super::{HOST, assert_none, sources};

/// Endings of the names of fields and variants that hold secrets.
const SECRET_NAMES: &[&str] = &["password", "secret", "token", "authorization", "credentials"];

#[test]
fn secrets_have_a_type_that_hides_them() {
    let hosts = sources("rs").filter(|(name, _)| HOST.iter().any(|folder| name.starts_with(folder)));
    let broken: Vec<_> = hosts
        .flat_map(|(name, text)| {
            bare_secrets(&text).map(|line| format!("{name}: must be a SecretString: {line}")).collect::<Vec<_>>()
        })
        .collect();
    assert_none(&broken);
}

#[test]
fn a_bare_secret_is_found() {
    let text = "struct S {\n    password: Option<String>,\n    realm: String,\n    pub token: SecretString,\n}\n\
                Token(String),\n";
    assert_eq!(bare_secrets(text).collect::<Vec<_>>(), ["password: Option<String>,", "Token(String),"]);
}

fn bare_secrets(text: &str) -> impl Iterator<Item = &str> {
    let is_secret = |line: &str| {
        let (name, kind) = line.split_once([':', '('])?;
        let name = name.trim_start_matches("pub ").to_lowercase();
        let named = SECRET_NAMES.iter().any(|secret| name.ends_with(secret)) && !name.contains(' ');
        Some(named && ["String", "Option<String>"].contains(&kind.trim().trim_end_matches([',', ')'])))
    };
    text.lines().map(str::trim).filter(move |line| is_secret(line) == Some(true))
}
