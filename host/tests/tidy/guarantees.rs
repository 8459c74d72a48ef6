// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Each guarantee in docs/guarantees.md names the test that verifies it.

use std::fs;

use super::{root, sources};

#[test]
fn each_guarantee_names_a_test_that_runs() {
    let doc = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let sources: String = sources("rs").chain(sources("py")).map(|(_, text)| text).collect();
    for line in doc.lines().filter(|line| line.starts_with("- ")) {
        let (_, test) = line.rsplit_once("`test: ").unwrap_or_else(|| panic!("no test named: {line}"));
        let test = test.trim_end_matches(['`', '.']);
        assert_eq!(fault(test, &sources), None, "{test}");
    }
}

/// Returns the reason why a function does not count as a test.
fn fault(test: &str, sources: &str) -> Option<&'static str> {
    let function = sources.find(&format!("fn {test}(")).or_else(|| sources.find(&format!("def {test}(")));
    let Some(at) = function else { return Some("there is no such test") };
    let attributes = sources[..at].rsplit("\n\n").next().unwrap_or_default();
    if attributes.contains("#[ignore") || attributes.contains("mark.skip") {
        return Some("the test is ignored");
    }
    let is_test =
        test.starts_with("test_") || ["test]", "test(", "proptest!"].iter().any(|mark| attributes.contains(mark));
    if is_test { None } else { Some("the function is not a test") }
}

#[test]
fn ignored_tests_and_plain_functions_do_not_count() {
    let sources = "#[test]\nfn a() {}\n\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\n\nfn c() {}\n";
    let faults = ["a", "b", "c", "d"].map(|test| fault(test, sources));
    assert_eq!(
        faults,
        [None, Some("the test is ignored"), Some("the function is not a test"), Some("there is no such test")]
    );
}
