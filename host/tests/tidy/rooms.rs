// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rooms (top-level modules) of the host import only the rooms that the table in docs/architecture.md allows, and
//! some words occur only in certain rooms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::{assert_none, code_lines, imports::Graph, root, sources};

/// Heading of the table. A row has one or more rooms, their content, the rooms that they may import, and the file to
/// read first.
const HEADING: &str = "| room | holds | may import | read first |";

/// Folders whose code does no I/O and reads no clock, each with words that this code must not contain.
const PURE: &[(&str, &[&str])] = &[
    (
        "host/src/domain",
        &[
            "tokio::",
            "tracing::",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "async fn",
            "Instant::now",
            "SystemTime::now",
        ],
    ),
    ("protocol/src", &["tokio::", "std::io", "std::net", "std::fs"]),
];

/// Words, each with the only rooms of the host whose code may contain the word.
const PLACES: &[(&str, &[&str])] = &[
    ("waggle_protocol::", &["machines", "network", "agent"]),
    ("waggle_link::", &["machines", "network", "agent"]),
    ("rmcp::", &["mcp"]),
    ("axum::", &["http"]),
];

#[test]
fn rooms_import_what_the_architecture_allows() {
    let rooms = table(&fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    let texts: Vec<_> = sources("rs").collect();
    let graph = Graph::read("host/src", texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert_none(&faults(&rooms, graph.edges()));
    for (room, row) in &rooms {
        assert!(row.read_first.iter().all(|file| root().join("host/src").join(file).is_file()), "{room}: {row:?}");
    }
}

#[test]
fn words_occur_only_in_their_rooms() {
    let broken: Vec<_> = sources("rs").flat_map(|(name, text)| out_of_place(&name, &text)).collect();
    assert_none(&broken);
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Row {
    may_import: BTreeSet<String>,
    read_first: BTreeSet<String>,
}

fn table(document: &str) -> BTreeMap<String, Row> {
    let rows = document.lines().skip_while(|line| *line != HEADING).skip(2).take_while(|line| line.starts_with('|'));
    let mut rooms = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(quoted).collect();
        let [_, names, _, may_import, read_first, _] = cells.as_slice() else { panic!("not four cells: {row}") };
        for name in names {
            let row = Row { may_import: may_import.clone(), read_first: read_first.clone() };
            assert_eq!(rooms.insert(name.clone(), row), None, "{name} has two rows");
        }
    }
    assert!(!rooms.is_empty(), "docs/architecture.md has no table with the heading {HEADING}");
    rooms
}

fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn faults<'a>(
    rooms: &BTreeMap<String, Row>,
    edges: impl Iterator<Item = (&'a str, &'a [String], &'a [String])>,
) -> Vec<String> {
    let (mut broken, mut used) = (BTreeSet::new(), BTreeSet::new());
    for (file, from, to) in edges {
        let (Some(from), Some(to)) = (from.first(), to.first()) else { continue };
        let may = rooms.get(from).is_some_and(|row| row.may_import.contains(to));
        if from != to && !may {
            broken.insert(format!("{file}: the table of rooms does not let {from} import {to}"));
        }
        used.insert((from, to));
    }
    let allowed = rooms.iter().flat_map(|(from, row)| row.may_import.iter().map(move |to| (from, to)));
    let unused = allowed.filter(|pair| !used.contains(pair));
    broken.extend(
        unused.map(|(from, to)| format!("the table of rooms lets {from} import {to}, but {from} does not import {to}")),
    );
    broken.into_iter().collect()
}

fn out_of_place(name: &str, text: &str) -> Vec<String> {
    let mentions =
        |word: &str| code_lines(text).flat_map(|line| line.split('"').step_by(2)).any(|code| code.contains(word));
    let mut broken = Vec::new();
    for (folder, banned) in PURE.iter().filter(|(folder, _)| name.starts_with(folder)) {
        broken.extend(
            banned.iter().filter(|word| mentions(word)).map(|word| format!("{name}: {folder} must not mention {word}")),
        );
    }
    let room = name.strip_prefix("host/src/").and_then(|path| path.split(['/', '.']).next());
    for (word, places) in PLACES.iter().filter(|(word, _)| room.is_some() && mentions(word)) {
        if !places.iter().any(|place| Some(*place) == room) {
            broken.push(format!("{name}: {word} belongs in {}", places.join(", ")));
        }
    }
    broken
}

#[test]
fn forbidden_import_is_found() {
    let rooms = table(&format!("{HEADING}\n|---|\n| `a`, `b` | x | `c` | `a.rs` |\n| `c` | y | | |\n"));
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    let edges = [
        ("a", path("a::x"), path("c")),
        ("b", path("b"), path("a")),
        ("c", path("c::y"), path("c::z")),
        ("d", path("d"), path("c")),
    ];
    assert_eq!(
        faults(&rooms, edges.iter().map(|(file, from, to)| (*file, from.as_slice(), to.as_slice()))),
        [
            "b: the table of rooms does not let b import a",
            "d: the table of rooms does not let d import c",
            "the table of rooms lets b import c, but b does not import c",
        ]
    );
}

#[test]
fn word_in_a_wrong_room_is_found() {
    let text = "use std::fs;\n// use rmcp::x\nlet now = axum::serve(\"rmcp::y\");\n\
                #[cfg(test)]\nmod tests {\n tokio::spawn }\n";
    assert_eq!(
        out_of_place("host/src/domain/environment.rs", text),
        [
            "host/src/domain/environment.rs: host/src/domain must not mention std::fs",
            "host/src/domain/environment.rs: axum:: belongs in http",
        ]
    );
}
