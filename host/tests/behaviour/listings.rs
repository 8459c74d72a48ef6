// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Listings in pages, and names that are not UTF-8.

use serde_json::{Value, json};

use crate::served::{Served, serve};

/// Returns the names of a page, and its `next`.
fn page(listed: &Value) -> (Vec<String>, Option<String>) {
    let files = listed["files"].as_array().unwrap();
    assert_eq!(listed["count"], files.len());
    let names = files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect();
    (names, listed.get("next").map(|next| next.as_str().unwrap().to_owned()))
}

/// Lists a folder, and checks that it fits into one page.
async fn listed(served: &Served, id: &str, path: &str, recursive: bool) -> Vec<String> {
    let listed = served.call("list_files", json!({"environment_id": id, "path": path, "recursive": recursive})).await;
    let (names, next) = page(&listed);
    assert_eq!((next, listed.get("truncated"), &listed["total"]), (None, None, &json!(names.len())));
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_listing_have_each_entry_once() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "mkdir -p many/b many/b-c && cd many && seq -w 12000 | xargs touch && touch b/0 b/1 b-c/0";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    for (recursive, total) in [(false, 12_002), (true, 12_005)] {
        let (mut names, mut pages, mut after) = (Vec::new(), 0, Some(String::new()));
        while let Some(start) = after {
            let arguments = json!({"environment_id": id, "path": "many", "recursive": recursive, "after": start});
            let result = served.call("list_files", arguments).await;
            assert_eq!((&result["total"], result.get("total_is_minimum")), (&json!(total), None));
            let (more, next) = page(&result);
            assert_eq!(result.get("truncated"), next.as_ref().map(|_| &json!(true)));
            assert!(more.len() > 3000 || next.is_none(), "{}", more.len());
            assert!(next.as_ref().is_none_or(|next| Some(next) == more.last()), "{next:?}");
            names.extend(more);
            (pages, after) = (pages + 1, next);
        }
        let mut expected: Vec<_> = (1..=12_000).map(|number| format!("{number:05}")).collect();
        let last = if recursive { &["b", "b-c", "b-c/0", "b/0", "b/1"][..] } else { &["b", "b-c"] };
        expected.extend(last.iter().map(|name| (*name).to_owned()));
        assert!(names == expected, "{} names", names.len());
        assert!((3..=4).contains(&pages), "{pages}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_between_pages_neither_repeat_nor_omit_other_entries() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "mkdir many && cd many && seq -f keep%05g 9000 | xargs touch";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let (mut names, mut after, mut round) = (Vec::new(), Some(String::new()), 0);
    while let Some(start) = after {
        let result = served.call("list_files", json!({"environment_id": id, "path": "many", "after": start})).await;
        let (more, next) = page(&result);
        names.extend(more);
        // The entry after which the next page begins is deleted; entries are created before and after it.
        let last = names.last().unwrap();
        let code = format!("cd many && rm '{last}' && touch before{round} z-after{round}");
        served.call("execute", json!({"environment_id": id, "code": code})).await;
        (after, round) = (next, round + 1);
    }
    let kept: Vec<_> = names.iter().filter(|name| name.starts_with("keep")).cloned().collect();
    assert!(kept == (1..=9000).map(|number| format!("keep{number:05}")).collect::<Vec<_>>(), "{}", kept.len());
    let new: Vec<_> = names.iter().map(String::as_str).filter(|name| !name.starts_with("keep")).collect();
    assert_eq!((new, round), (vec!["z-after0", "z-after1"], 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_make_short_pages() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    // The names of both folders exceed the maximum of a page: 512 KiB.
    let code = "mkdir many && cd many && p=$(printf %0240d 0) && seq -f \"$p%05g\" 4000 | xargs touch";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let (mut names, mut after) = (Vec::new(), Some(String::new()));
    while let Some(start) = after {
        let result = served.call("list_files", json!({"environment_id": id, "path": "many", "after": start})).await;
        let (more, next) = page(&result);
        assert!(more.len() > 1000 || next.is_none(), "{}", more.len());
        names.extend(more);
        after = next;
    }
    assert!(names == (1..=4000).map(|number| format!("{number:0245}")).collect::<Vec<_>>(), "{}", names.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn recursive_listing_includes_names_that_are_not_utf8() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let code = "mkdir -p a/b; echo 1 >a/b/c; ln -s / a/up; touch \"a/$(printf 'x\\377')\"";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let result = served.call("list_files", json!({"environment_id": id, "path": "a", "recursive": true})).await;
    assert_eq!(page(&result).0, ["b", "b/c", "up", "x\\xFF"]);
    let files = result["files"].as_array().unwrap();
    assert_eq!((files[0].get("name_base64"), &files[3]["name_base64"]), (None, &json!("eP8=")));
    assert_eq!(listed(&served, &id, "a", false).await, ["b", "up", "x\\xFF"]);
}

/// Creates files whose names are not UTF-8, contain backslashes, or look like the text of another name. Each file
/// contains its name.
const CREATE: &str = r#"
create() { name=$(printf "$1"); printf %s "$name" >"$name"; }
mkdir -p names/"$(printf 'dir\351\\')"/sub; cd names
create 'caf\350'; create 'caf\351'; create 'caf\303\251'; create 'caf\\xE9'; create 'caf\\x5CxE9'; create 'caf\\xe9'
create 'back\\slash\351'; create 'back\\slash'; create '\377\376\\x'
cd "$(printf 'dir\351\\')"; create '\351'; create 'plain'; create 'sub/\200\\'
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_listed_name_is_that_of_its_file() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.call("execute", json!({"environment_id": id, "code": CREATE})).await;
    let names = listed(&served, &id, "names", true).await;
    let expected = [
        "back\\slash",
        "back\\x5Cslash\\xE9",
        "caf\\x5Cx5CxE9",
        "caf\\x5CxE9",
        "caf\\xe9",
        "café",
        "caf\\xE8",
        "caf\\xE9",
        "dir\\xE9\\x5C",
        "dir\\xE9\\x5C/plain",
        "dir\\xE9\\x5C/sub",
        "dir\\xE9\\x5C/sub/\\x80\\x5C",
        "dir\\xE9\\x5C/\\xE9",
        "\\xFF\\xFE\\x5Cx",
    ];
    assert_eq!(names, expected);
    let result = served.call("list_files", json!({"environment_id": id, "path": "names", "recursive": true})).await;
    for (at, file) in result["files"].as_array().unwrap().iter().enumerate() {
        let (name, path) = (&expected[at], format!("names/{}", expected[at]));
        if file["is_dir"] == true {
            assert!(!listed(&served, &id, &path, false).await.is_empty());
        } else {
            let read = json!({"environment_id": id, "path": path, "encoding": "base64"});
            let content = served.raw("read_file", read).await.unwrap().content[0].as_text().unwrap().text.clone();
            // The content of a file in a folder is its name there.
            let is_name = file.get("name_base64").is_none_or(|base64| *base64 == content || name.contains('/'));
            assert!(is_name, "{name}: {file} {content}");
        }
        // Each name is also where the next page begins.
        let arguments = json!({"environment_id": id, "path": "names", "recursive": true, "after": name});
        assert_eq!(page(&served.call("list_files", arguments).await).0, expected[at + 1..]);
    }
    let folder = listed(&served, &id, "names/dir\\xE9\\x5C/sub/", false).await;
    assert_eq!(folder, ["\\x80\\x5C"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_with_a_name_that_is_not_utf8_can_be_written() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    served.call("execute", json!({"environment_id": id, "code": CREATE})).await;
    let write = async |path: &str, append: bool| {
        let arguments = json!({"environment_id": id, "path": path, "content": path, "append": append});
        served.call("write_file", arguments).await;
    };
    let shown = async |code: &str| {
        served.call("execute", json!({"environment_id": id, "code": format!("cd names; {code}")})).await["stdout"]
            .clone()
    };
    let before = listed(&served, &id, "names", true).await;
    for name in before.iter().filter(|name| !name.ends_with("sub") && !name.ends_with("\\xE9\\x5C")) {
        write(&format!("names/{name}"), false).await;
        let read = json!({"environment_id": id, "path": format!("names/{name}")});
        let content = served.raw("read_file", read).await.unwrap().content[0].as_text().unwrap().text.clone();
        assert_eq!(content, format!("names/{name}"));
    }
    assert_eq!(listed(&served, &id, "names", true).await, before);
    assert_eq!(shown("cat \"$(printf 'caf\\351')\"").await, "names/caf\\xE9");
    assert_eq!(shown("cat 'caf\\xE9'").await, "names/caf\\x5CxE9");
    // New files, in a folder with such a name and with a name of their own.
    write("names/dir\\xE9\\x5C/new/file\\xE9", true).await;
    assert_eq!(shown("cat \"$(printf 'dir\\351\\\\/new/file\\351')\"").await, "names/dir\\xE9\\x5C/new/file\\xE9");
    // A name that only looks like the text of another one is taken literally if no other file has that name.
    shown("rm \"$(printf 'caf\\351')\"; printf literal >'caf\\xE9'").await;
    let read = json!({"environment_id": id, "path": "names/caf\\xE9"});
    assert_eq!(served.raw("read_file", read).await.unwrap().content[0].as_text().unwrap().text, "literal");
    write("names/caf\\xE9", false).await;
    assert_eq!(shown("cat 'caf\\xE9'; ls | grep -c ^caf").await, "names/caf\\xE95\n");
    shown("mkdir 'lit\\xE9'").await;
    write("names/lit\\xE9/new", false).await;
    assert_eq!(shown("cat 'lit\\xE9/new'; ls -d lit* | wc -l").await, "names/lit\\xE9/new1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_with_the_longest_text_of_a_path_can_be_read() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    // Folders and a file with names of 255 invalid bytes; the text of the path has more than 4096 bytes.
    let code = "n=$(printf '\\351%.0s' $(seq 255)); mkdir -p top/$n/$n/$n/$n && echo deep >top/$n/$n/$n/$n/$n";
    served.call("execute", json!({"environment_id": id, "code": code})).await;
    let names = listed(&served, &id, "top", true).await;
    assert_eq!((names.len(), names[4].len()), (5, 5 * 255 * 4 + 4));
    let read = json!({"environment_id": id, "path": format!("top/{}", names[4])});
    assert_eq!(served.raw("read_file", read).await.unwrap().content[0].as_text().unwrap().text, "deep\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn longer_name_than_any_is_refused() {
    let served = serve(&[]).await;
    let id = served.create("shell").await;
    let after = |bytes: usize| json!({"environment_id": id, "after": "x".repeat(bytes)});
    assert_eq!(served.call("list_files", after(16_384)).await["count"], 0);
    let (text, kind) = served.refused("list_files", after(16_385)).await;
    assert_eq!(kind, "invalid_argument");
    assert!(
        text.starts_with("after: 16385 bytes are too many; must be at most 16384 bytes in one call; pass"),
        "{text}"
    );
}
