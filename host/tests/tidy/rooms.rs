// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rooms (top-level modules) of the host and of the crates below it import only the rooms that the table in
//! docs/architecture.md allows, and some words occur only in certain rooms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::{
    HOST, assert_none, code_lines,
    imports::{CRATES, Graph},
    root, sources,
};

/// Heading of the table. A row has one or more rooms, their content, the rooms that they may import, and the file of
/// their crate to read first. A room of a crate below the host has the name `CRATE::ROOM`.
const HEADING: &str = "| room | holds | may import | read first |";

/// Folders and files with words that their code must not contain: some code does no I/O and reads no clock, and the
/// agent keeps no random keys of hash maps from before the host's welcome.
const PURE: &[(&[&str], &[&str])] = &[
    (
        &["host/src/domain", "host/images/src/reference.rs", "host/shared/src/address.rs"],
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
    (&["protocol/src"], &["tokio::", "std::io", "std::net", "std::fs"]),
    (&["guest-agent/src"], &["HashMap", "collections::HashSet", "RandomState"]),
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
    let graph = Graph::read(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert_none(&faults(&rooms, graph.edges()));
    let found: BTreeSet<_> = graph.modules().filter(|module| module.len() == 2).filter_map(room).collect();
    assert_eq!(rooms.keys().cloned().collect::<BTreeSet<_>>(), found, "the table must have a row for each room");
    for (room, row) in &rooms {
        let folder = root().join(crate_of(room).1);
        assert!(row.read_first.iter().all(|file| folder.join(file).is_file()), "{room}: {row:?}");
    }
}

#[test]
fn several_crates_use_each_shared_module() {
    let texts: Vec<_> = sources("rs").collect();
    let graph = Graph::read(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    let mut users: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (_, from, to) in graph.edges().filter(|(_, from, to)| to[0] == "waggle_shared" && from[0] != to[0]) {
        users.entry(to.join("::")).or_default().insert(&from[0]);
    }
    let shared = graph.modules().filter(|module| module[0] == "waggle_shared" && module.len() == 2);
    let broken =
        shared.map(|module| module.join("::")).filter(|name| users.get(name).is_none_or(|users| users.len() < 2));
    assert_none(&broken.map(|name| format!("{name}: move it into the only crate that uses it")).collect::<Vec<_>>());
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

/// Returns the room of a module, or `None` for the host's own root and for crates that are not part of the host.
fn room(module: &[String]) -> Option<String> {
    let (crate_name, path) = module.split_first()?;
    let (_, folder) = CRATES.iter().find(|(name, _)| name == crate_name)?;
    let inner = folder.strip_prefix("host/")?.strip_suffix("src")?.trim_end_matches('/');
    match (inner, path.first()) {
        ("", top) => top.cloned(),
        (inner, None) => Some(inner.to_owned()),
        (inner, Some(top)) => Some(format!("{inner}::{top}")),
    }
}

/// Returns the crate of a room, with the folder of its modules.
fn crate_of(room: &str) -> (&'static str, &'static str) {
    let name = room.split_once("::").map_or("waggle".to_owned(), |(inner, _)| format!("waggle_{inner}"));
    *CRATES.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("{room}: there is no crate {name}"))
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
        // The root of a crate declares its rooms.
        let (Some(from), Some(to)) = (room(from).filter(|_| from.len() > 1), room(to)) else { continue };
        let may = rooms.get(&from).is_some_and(|row| row.may_import.contains(&to));
        if from != to && !may {
            broken.insert(format!("{file}: the table of rooms does not let {from} import {to}"));
        }
        used.insert((from, to));
    }
    let allowed = rooms.iter().flat_map(|(from, row)| row.may_import.iter().map(move |to| (from, to)));
    let unused = allowed.filter(|(from, to)| !used.contains(&((*from).clone(), (*to).clone())));
    broken.extend(
        unused.map(|(from, to)| format!("the table of rooms lets {from} import {to}, but {from} does not import {to}")),
    );
    broken.into_iter().collect()
}

fn out_of_place(name: &str, text: &str) -> Vec<String> {
    let mentions =
        |word: &str| code_lines(text).flat_map(|line| line.split('"').step_by(2)).any(|code| code.contains(word));
    let mut broken = Vec::new();
    for (_, banned) in PURE.iter().filter(|(pure, _)| pure.iter().any(|start| name.starts_with(start))) {
        broken
            .extend(banned.iter().filter(|word| mentions(word)).map(|word| format!("{name}: must not mention {word}")));
    }
    let room = HOST.iter().find_map(|folder| name.strip_prefix(folder)).and_then(|path| path.split(['/', '.']).next());
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
        ("a", path("waggle::a::x"), path("waggle::c")),
        ("b", path("waggle::b"), path("waggle::a")),
        ("c", path("waggle::c::y"), path("waggle::c::z")),
        ("d", path("waggle::d"), path("waggle::c")),
        ("e", path("waggle::c"), path("waggle_shared::e")),
    ];
    assert_eq!(
        faults(&rooms, edges.iter().map(|(file, from, to)| (*file, from.as_slice(), to.as_slice()))),
        [
            "b: the table of rooms does not let b import a",
            "d: the table of rooms does not let d import c",
            "e: the table of rooms does not let c import shared::e",
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
            "host/src/domain/environment.rs: must not mention std::fs",
            "host/src/domain/environment.rs: axum:: belongs in http",
        ]
    );
}
