// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Processes that are killed while they save: before each change to the file system, and at any time.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    thread,
};

use tokio::runtime::Runtime;

use super::{changes::recording::kill_after, *};

/// Variables of the child: the data folder, and the number of changes after which it is killed.
const DATA: &str = "WAGGLE_TEST_SAVED_DATA";
const CHANGES: &str = "WAGGLE_TEST_SAVED_CHANGES";

/// The steps of the child, which it repeats. Each saves, suspends or removes.
const STEPS: [(&str, bool); 6] = [("a", true), ("b", true), ("a", true), ("b", false), ("", true), ("a", false)];

/// Number of processes that are killed at any time.
const RANDOM_KILLS: u64 = 200;

fn key(name: &str) -> SavedKey {
    if name.is_empty() {
        SavedKey::Suspended("123e4567-e89b-42d3-a456-426614174000".parse().unwrap())
    } else {
        named(name)
    }
}

fn step(number: u32) -> (&'static str, bool) {
    STEPS[number as usize % STEPS.len()]
}

/// Returns the entries after a number of steps: their keys, and the step that saved each.
fn expected(steps: u32) -> BTreeMap<SavedKey, u32> {
    let mut entries = BTreeMap::new();
    for number in 0..steps {
        match step(number) {
            (name, true) => drop(entries.insert(key(name), number)),
            (name, false) => drop(entries.remove(&key(name))),
        }
    }
    entries
}

/// Saves and removes until the process is killed, and prints the number of each step that is done.
fn be_killed(data: &Path) {
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(SavedMachines::open(data, LIMITS)).unwrap();
    if let Ok(changes) = env::var(CHANGES) {
        kill_after(changes.parse().unwrap());
    }
    for number in 0.. {
        match step(number) {
            (name, true) => drop(runtime.block_on(save(&store, &ada(), key(name), number)).unwrap()),
            (name, false) => assert!(runtime.block_on(store.remove(&ada(), &key(name))).unwrap()),
        }
        println!("\ndone {number}");
    }
}

fn start(test: &str, data: &TempDir, changes: Option<u32>) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("saved::tests::kills::{test}"), "--nocapture"]);
    command.env(DATA, data.path()).stdout(Stdio::piped());
    if let Some(changes) = changes {
        command.env(CHANGES, changes.to_string());
    }
    command.spawn().unwrap()
}

/// Waits for the end of the child, and checks the entries that it has left. Returns the number of steps that it had
/// done.
fn check(mut child: Child, output: impl std::io::Read, data: &TempDir) -> u32 {
    let mut text = String::new();
    BufReader::new(output).read_to_string(&mut text).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.code(), None, "{text}");
    let last =
        text.lines().rev().find_map(|line| line.strip_prefix("done ")).map(|number| number.parse::<u32>().unwrap());
    let done = last.map_or(0, |last| last + 1);
    let runtime = Runtime::new().unwrap();
    let found = runtime.block_on(async {
        let store = open(data).await;
        store.check().unwrap();
        let entries = store.list(&ada()).into_iter().chain(store.suspended());
        let mut found = BTreeMap::new();
        for entry in entries {
            let number = saved_number(&store, &ada(), &entry.key).await.unwrap();
            assert_eq!(found.insert(entry.key, number), None);
        }
        has_folders(data, found.len()).await;
        found
    });
    // The step during which the child was killed has happened or not.
    assert!([expected(done), expected(done + 1)].contains(&found), "{found:?} after {done} steps");
    done
}

#[test]
fn kill_before_any_change_leaves_whole_entries() {
    if let Ok(data) = env::var(DATA) {
        return be_killed(Path::new(&data));
    }
    let mut done = 0;
    for changes in 0.. {
        let data = tempfile::tempdir().unwrap();
        let mut child = start("kill_before_any_change_leaves_whole_entries", &data, Some(changes));
        let output = child.stdout.take().unwrap();
        done = check(child, output, &data).max(done);
        // The second round replaces entries of the first, and also removes what is not there.
        if done as usize > 2 * STEPS.len() {
            assert!(changes > 100, "{changes} changes are too few");
            return;
        }
    }
}

#[test]
fn kill_at_any_time_leaves_whole_entries() {
    if let Ok(data) = env::var(DATA) {
        return be_killed(Path::new(&data));
    }
    let mut delay = 1;
    for _ in 0..RANDOM_KILLS {
        let data = tempfile::tempdir().unwrap();
        let mut child = start("kill_at_any_time_leaves_whole_entries", &data, None);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "done 0\n" {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0);
        }
        // Spreads the delays over 20 ms, each different from the others.
        delay = delay * 7_919 % 20_011;
        thread::sleep(Duration::from_micros(delay));
        child.kill().unwrap();
        // The line that says so has already been read.
        let output = line.as_bytes().chain(output);
        check(child, output, &data);
    }
}
