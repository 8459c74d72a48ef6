// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the grammar of package names.

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
        "ms@>=2",
        "ms@*",
        "ms@2||3",
        "ms@>=2 <3||^5",
        "millis@npm:ms@2",
        "millis@npm:ms",
        "node-types@npm:@types/node@^20",
        "@own/types@npm:@types/node",
    ] {
        assert_eq!(names(name), Ok(vec![name.to_owned()]));
    }
}

#[test]
fn lists_have_one_meaning_in_each_way_of_writing() {
    for (list, expected) in [
        (r#"["requests", "numpy >= 2"]"#, "requests|numpy>=2"),
        (r#" ["a\u003e=1"] "#, "a>=1"),
        ("['requests', 'numpy>=2',]", "requests|numpy>=2"),
        ("[requests, numpy]", "requests|numpy"),
        ("requests,numpy", "requests|numpy"),
        ("requests, numpy ,\n", "requests|numpy"),
        ("numpy >= 2 pandas", "numpy>=2|pandas"),
        ("a >=1, <2, b", "a>=1,<2|b"),
        ("a>=1 , !=1.5 , <2 b", "a>=1,!=1.5,<2|b"),
        ("a>=1 <2", "a>=1,<2"),
        ("a[b, c] == 1, d", "a[b,c]==1|d"),
        ("a[b,c],d[e]", "a[b,c]|d[e]"),
        (r#""pandas[excel]>=2,<3" 'a'"#, "pandas[excel]>=2,<3|a"),
        (r#""requests numpy""#, "requests|numpy"),
        ("`jq`", "jq"),
        ("'ms@2 || 3'", "ms@2||3"),
        ("ms@2 || 3, a", "ms@2||3|a"),
        ("ms@>= 2 <3 a", "ms@>=2 <3|a"),
        ("ms@>=2,<3", "ms@>=2 <3"),
        ("lodash @types/node", "lodash|@types/node"),
        ("a ^b", ""),
        ("@types/node@20,millis@npm:ms@2", "@types/node@20|millis@npm:ms@2"),
    ] {
        let joined = names(list).map(|names| names.join("|")).unwrap_or_default();
        assert_eq!(joined, expected, "{list}");
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
        "a&b",
        "a[",
        "a[]",
        "a[b",
        "a[b]c",
        "a>",
        "a@",
        "a@-x/y",
        "a@-x",
        "a@.",
        "a@..",
        "a===1",
        "a>=1<<<2",
        "\u{e4}",
        "a\u{0}",
        "'a",
        "'a'b",
        "a'b'",
        "\"'a'\"",
        "file:a",
        "npm:a@1",
        "a@npm:",
        "a@npm:-b",
        "a@npm:b@npm:c",
        "a@npm:npm:c",
        "a@file:b",
        "a@git:b",
        "a@|2",
        "a@2||",
        "a@2||-b",
        "a.whl",
        "a.TGZ",
        "a.tar.gz==1",
        "a.zip[b]",
        "a@b.tgz",
        "a@npm:b.tgz",
        "a.rpm",
        "a.deb",
        "a.apk",
        ".a",
        "_a",
        "+a",
    ] {
        let shown = match name {
            // The fault is in the text between the quotes.
            "\"'a'\"" => "'a'",
            _ => name,
        };
        assert_eq!(names(name), Err(PackagesFault::BadName { name: shown.escape_debug().to_string() }), "{name:?}");
    }
}

#[test]
fn rejects_names_and_versions_that_end_with_a_hyphen() {
    for name in ["a-", "a=1-", "a@1-", "a[b-]", "a-==1", "g++-"] {
        assert_eq!(names(name), Err(PackagesFault::BadName { name: name.to_owned() }));
    }
}

#[test]
fn one_invalid_name_rejects_all() {
    for list in ["requests -e numpy", "[\"requests\", \"-e\"]", "requests '-e'", "requests,-e"] {
        assert_eq!(names(list), Err(PackagesFault::BadName { name: "-e".to_owned() }), "{list}");
    }
    assert_eq!(names("numpy >= , a"), Err(PackagesFault::BadName { name: "numpy >= ,".to_owned() }));
}

#[test]
fn rejects_elements_of_a_json_list_that_are_not_strings() {
    for (list, element) in
        [("[null]", "null"), (r#"["a", 1]"#, "1"), (r#"["a", true, 1]"#, "true"), ("[[\"a\"]]", "[\"a\"]")]
    {
        assert_eq!(names(list), Err(PackagesFault::NotAString { element: element.to_owned() }), "{list}");
    }
    let long = names(&format!("[[{}1]]", "1,".repeat(1000))).unwrap_err().to_string();
    assert!(long.len() < 200 && long.contains("[1,1,1"), "{long}");
}

#[test]
fn splits_at_any_white_space() {
    assert_eq!(names(" a\tb\n\n c "), Ok(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
}

#[test]
fn rejects_lists_and_names_beyond_the_limits() {
    for empty in [" \n ", "[]", "[\"\"]", "''", ","] {
        assert_eq!(names(empty), Err(PackagesFault::None), "{empty}");
    }
    assert_eq!(names(&"a ".repeat(PACKAGES_MAX)).unwrap().len(), PACKAGES_MAX);
    assert_eq!(names(&"a ".repeat(101)), Err(PackagesFault::TooMany { count: 101 }));
    assert_eq!(names(&"a,".repeat(101)), Err(PackagesFault::TooMany { count: 101 }));
    for name in ["a".repeat(257), format!("a=={}", "1".repeat(254)), "?".repeat(257)] {
        assert_eq!(names(&name), Err(PackagesFault::NameTooLong { bytes: 257 }));
    }
    assert_eq!(names(&" ".repeat(65_537)), Err(PackagesFault::ListTooLong { bytes: 65_537 }));
}

/// Texts that consist mostly of parts of the grammar, so that many of them are valid.
fn texts() -> impl Strategy<Value = String> {
    let parts = [
        "a", "b1", "@", "/", ":", "npm:", ".", "-", "=", "==", ">=", "<", "!", "~", "^", "[", "]", ",", "|", "||", "+",
        "*", " ", "  ", "\n", "'", "\"", "`", "$", ";", "\\", ".tgz", "file", "2", "1.0", "..",
    ];
    proptest::collection::vec(proptest::sample::select(parts.to_vec()), 1..14).prop_map(|parts| parts.concat())
}

/// Checks that no package manager can take the name for an option, a path, a URL or several arguments.
fn assert_harmless(name: &str) {
    assert!(!name.starts_with(['-', '.', '/', '~', '_', '=']) && !name.ends_with('-'), "{name:?}");
    assert!(name.len() <= PACKAGE_NAME_BYTES_MAX && !is_file(name), "{name:?}");
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "@/.-_+*=<>!~^[],|: ".contains(c)), "{name:?}");
    // A colon is only in npm's alias, behind the name, and the name behind the alias follows the same rules.
    if let Some((before, alias)) = name.split_once(':') {
        assert!(before.ends_with("@npm") && before.len() > 4 && !alias.contains(':'), "{name:?}");
        assert_harmless(alias);
        assert_harmless(before.strip_suffix("@npm").unwrap());
        return;
    }
    // A slash is only in a scoped name.
    match name.split_once('/') {
        Some((scope, rest)) => {
            assert!(scope.len() > 1 && scope.starts_with('@') && !scope[1..].contains('@'), "{name:?}");
            assert!(!rest.contains('/') && rest.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name:?}");
        }
        None => assert!(!name.starts_with('@'), "{name:?}"),
    }
    // A version does not begin like a path or an option.
    for (at, _) in name.match_indices(['@', '=', '<', '>', '~', '^', '|', ' ', ',']) {
        assert!(!name[at + 1..].starts_with(['.', '-', '/', '_']) && at + 1 < name.len(), "{name:?}");
    }
    // A blank is only between two comparators of npm's.
    for (at, _) in name.match_indices(' ') {
        assert!(name[..at].contains('@') && name[at + 1..].starts_with(['>', '<', '=', '~', '^']), "{name:?}");
    }
    assert!(!name.replace("||", "").contains('|'), "{name:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn valid_names_are_never_options_paths_or_urls(text in texts()) {
        for name in parse_packages(&text).unwrap_or_default() {
            assert_harmless(name.as_str());
        }
    }

    #[test]
    fn normal_form_of_a_name_is_parsed_as_the_same_name(text in texts()) {
        for name in parse_packages(&text).unwrap_or_default() {
            prop_assert_eq!(parse_packages(name.as_str()), Ok(vec![name]));
        }
    }

    #[test]
    fn any_text_is_parsed_or_rejected(text in "\\PC{0,40}") {
        for name in parse_packages(&text).unwrap_or_default() {
            assert_harmless(name.as_str());
        }
    }
}
