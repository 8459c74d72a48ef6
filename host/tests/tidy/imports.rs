// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The import graph of the crates: for each file, the other files whose items it uses.
//!
//! The graph is built from paths in the source that begin with `crate`, `self`, `super` or the name of one of the
//! crates, also inside `{}` groups. The longest prefix of a path that names a module determines the imported file. A
//! `mod` declaration counts as an import too: the declaring file imports the declared file.

use std::collections::{BTreeMap, BTreeSet};

use super::{assert_none, code_lines, sources};

/// The crates as paths name them, each with the folder of its modules.
pub(crate) const CRATES: &[(&str, &str)] = &[
    ("waggle", "host/src"),
    ("waggle_images", "host/images/src"),
    ("waggle_shared", "host/shared/src"),
    ("guest_agent", "guest-agent/src"),
    ("waggle_protocol", "protocol/src"),
    ("waggle_link", "protocol/link/src"),
    ("waggle_seccomp", "protocol/seccomp/src"),
];

#[test]
fn only_a_parent_and_its_children_import_each_other() {
    let texts: Vec<_> = sources("rs").collect();
    let graph = Graph::read(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert_none(&graph.cycles());
}

/// The files of all crates by module path, and the modules that each file imports. A module path begins with the
/// name of its crate.
pub(crate) struct Graph {
    files: BTreeMap<Vec<String>, String>,
    imports: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
}

impl Graph {
    /// Reads the crates from pairs of a file's name and its text.
    pub(crate) fn read<'a>(sources: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let modules: BTreeMap<Vec<String>, (&str, &str)> =
            sources.filter_map(|(name, text)| Some((module(name)?, (name, text)))).collect();
        let mut imports = BTreeMap::new();
        for (own, (_, text)) in &modules {
            let mut found = BTreeSet::new();
            let code = bare_code(text);
            for path in paths(&code).into_iter().filter_map(|path| resolve(own, &path)).chain(declared(own, &code)) {
                if let Some(target) =
                    (0..=path.len()).rev().map(|end| &path[..end]).find(|path| modules.contains_key(*path))
                    && target != own
                {
                    found.insert(target.to_vec());
                }
            }
            imports.insert(own.clone(), found);
        }
        Self { files: modules.into_iter().map(|(module, (name, _))| (module, name.to_owned())).collect(), imports }
    }

    /// Returns the modules that have a file.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &[String]> {
        self.files.keys().map(Vec::as_slice)
    }

    /// Returns each import as the importing file, the module of this file, and the imported module.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &[String], &[String])> {
        self.imports.iter().flat_map(|(from, imported)| {
            imported.iter().map(|to| (self.files[from].as_str(), from.as_slice(), to.as_slice()))
        })
    }

    /// Returns the import cycles, except a cycle of a file and the files that it declares.
    pub(crate) fn cycles(&self) -> Vec<String> {
        let reached: BTreeMap<_, _> = self.files.keys().map(|module| (module, self.reachable(module))).collect();
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for module in self.files.keys() {
            let cycle: BTreeSet<_> =
                reached[module].iter().copied().filter(|other| reached[*other].contains(module)).collect();
            if cycle.len() > 1 && !is_family(&cycle) && seen.insert(cycle.clone()) {
                cycles.push(self.describe(&cycle));
            }
        }
        cycles
    }

    fn reachable<'a>(&'a self, from: &'a Vec<String>) -> BTreeSet<&'a Vec<String>> {
        let (mut found, mut ahead) = (BTreeSet::new(), vec![from]);
        while let Some(module) = ahead.pop() {
            ahead.extend(self.imports[module].iter().filter(|next| found.insert(*next)));
        }
        found
    }

    fn describe(&self, cycle: &BTreeSet<&Vec<String>>) -> String {
        let edges = cycle.iter().flat_map(|from| {
            let within = self.imports[*from].iter().filter(|to| cycle.contains(*to));
            within.map(|to| format!("\n  {} -> {}", self.files[*from], self.files[to]))
        });
        format!("{} files import each other:{}", cycle.len(), edges.collect::<String>())
    }
}

/// Whether one of the modules is the parent of all others.
fn is_family(cycle: &BTreeSet<&Vec<String>>) -> bool {
    cycle.iter().any(|parent| {
        cycle
            .iter()
            .all(|module| module == parent || module.split_last().is_some_and(|(_, above)| above == parent.as_slice()))
    })
}

/// Returns the module path of a file, or `None` for `main.rs`, `tests.rs` and files outside the crates' folders.
fn module(name: &str) -> Option<Vec<String>> {
    let in_crate = |(crate_name, folder): &(&'static str, &str)| {
        Some((*crate_name, name.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(".rs")?))
    };
    let (crate_name, path) = CRATES.iter().find_map(in_crate)?;
    match path {
        "lib" => Some(vec![crate_name.to_owned()]),
        "main" => None,
        _ if path.split('/').next_back() == Some("tests") => None,
        _ => Some([crate_name].into_iter().chain(path.split('/')).map(str::to_owned).collect()),
    }
}

/// Removes comment lines, unit tests and the contents of strings from the text.
fn bare_code(text: &str) -> String {
    code_lines(text).flat_map(|line| line.split('"').step_by(2).chain(["\n"])).collect()
}

/// Returns the modules that a file declares.
fn declared(own: &[String], code: &str) -> Vec<Vec<String>> {
    let names = code.lines().filter_map(|line| {
        let line = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    names.map(|name| own.iter().cloned().chain([name.to_owned()]).collect()).collect()
}

/// Returns the paths that begin with `crate`, `self`, `super` or the name of a crate, split into their segments.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate", "self", "super"].into_iter().chain(CRATES.iter().map(|(name, _)| *name)) {
        for (at, _) in code.match_indices(&format!("{start}::")) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|before| !is_name(before) && before != ':') {
                read_path(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Reads a path. If the path ends with a group in braces, reads the paths of the group. Returns the remaining text.
fn read_path<'a>(mut text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = above.to_vec();
    loop {
        text = text.trim_start();
        if let Some(mut group) = text.strip_prefix('{') {
            loop {
                group = group.trim_start().trim_start_matches(',').trim_start();
                match group.strip_prefix('}') {
                    Some(rest) => return rest,
                    None if group.is_empty() => return group,
                    None => {
                        let rest = read_path(group, &path, found);
                        // Text that is not a path ends the group. After a return type, for example, the brace opens
                        // a function body.
                        if rest.len() == group.len() {
                            return rest;
                        }
                        group = rest;
                    }
                }
            }
        }
        let end = text.find(|next| !is_name(next)).unwrap_or(text.len());
        if end == 0 {
            break;
        }
        path.push(text[..end].to_owned());
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => break,
        }
    }
    found.push(path);
    text.strip_prefix(" as ").map_or(text, |rest| rest.trim_start_matches(is_name))
}

/// Converts a path that is used in the module `own` into a path that begins with the name of its crate.
fn resolve(own: &[String], path: &[String]) -> Option<Vec<String>> {
    let names_crate = CRATES.iter().any(|(name, _)| path.first().is_some_and(|first| first == name));
    let mut base = if names_crate { Vec::new() } else { own.to_vec() };
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        match first.as_str() {
            "crate" => base.truncate(1),
            "self" => {}
            "super" => drop(base.pop()?),
            _ => break,
        }
        rest = after;
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[test]
fn cycles_are_found_and_a_parent_with_its_children_is_not_a_cycle() {
    let cycles = |sources: &[(&str, &str)]| Graph::read(sources.iter().copied()).cycles();
    let lib = ("host/src/lib.rs", "mod a;\nmod b;\n");
    let child = ("host/src/a/c.rs", "use super::X;\n// crate::b::Y\nfn f() { g(\"crate::b\") }\n");
    let family = [
        lib,
        ("host/src/a.rs", "mod c;\nuse self::c::Z;\n"),
        child,
        ("host/src/b.rs", "use crate::a::{self, c::{Z, W as V}};\n"),
    ];
    assert_eq!(cycles(&family), Vec::<String>::new());
    let siblings = [lib, ("host/src/a.rs", "use crate::b::Y;\n"), ("host/src/b.rs", "fn f(x: super::a::X) {}\n")];
    assert_eq!(
        cycles(&siblings),
        ["2 files import each other:\n  host/src/a.rs -> host/src/b.rs\n  host/src/b.rs -> host/src/a.rs"]
    );
    let grandchild = [
        lib,
        ("host/src/a.rs", "pub mod c;\n"),
        ("host/src/a/c.rs", "mod d;\n"),
        ("host/src/a/c/d.rs", "use super::super::X;\n#[cfg(test)]\nmod tests {\n use crate::b;\n}\n"),
        ("host/src/b.rs", "use crate::{\n    a::{c, X},\n};\n"),
    ];
    assert_eq!(
        cycles(&grandchild),
        ["3 files import each other:\n  host/src/a.rs -> host/src/a/c.rs\n  host/src/a/c.rs -> host/src/a/c/d.rs\n  \
             host/src/a/c/d.rs -> host/src/a.rs"]
    );
    let crates = [
        ("host/src/lib.rs", "mod a;\n"),
        ("host/src/a.rs", "use waggle_shared::{b::X, c::Y};\n"),
        ("host/shared/src/b.rs", "fn f(x: waggle::a::X) {}\n"),
    ];
    assert_eq!(
        cycles(&crates),
        ["2 files import each other:\n  host/src/a.rs -> host/shared/src/b.rs\n  \
             host/shared/src/b.rs -> host/src/a.rs"]
    );
}
