// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The rules of merging layers.

use std::fs;

use waggle_images::cache::ImageStore;
use waggle_shared::causes::chain;

use crate::layout::{Layer, Layout, tree};

#[track_caller]
fn check(layers: Vec<Layer>, expected: &[(&str, &str)]) {
    let layout = Layout::of(layers);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let image = runtime.block_on(layout.prepare()).unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    let found = tree(&image.erofs);
    let found: Vec<_> = found.iter().map(|(path, entry)| (path.as_str(), entry.as_str())).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn check_rejected(layers: Vec<Layer>, expected: &str) {
    let layout = Layout::of(layers);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fault = runtime.block_on(layout.prepare()).unwrap_err();
    let text = chain(&fault);
    assert!(text.contains(expected), "{text}");
}

#[test]
fn upper_file_replaces_a_lower_one() {
    check(
        vec![Layer::new().file("a", "old").file("b", "kept"), Layer::new().file("a", "new")],
        &[("a", "644 new"), ("b", "644 kept")],
    );
}

#[test]
fn later_of_two_entries_in_a_layer_wins() {
    check(vec![Layer::new().file("a", "first").file("./a", "second")], &[("a", "644 second")]);
}

#[test]
fn image_may_have_no_layers() {
    check(vec![], &[]);
}

#[test]
fn whiteout_removes_a_file_or_a_whole_folder() {
    check(
        vec![
            Layer::new().file("a", "").file("keep", "").folder("d").file("d/x", "").file("d/e/y", ""),
            Layer::new().file(".wh.a", "").file(".wh.d", ""),
        ],
        &[("keep", "644 ")],
    );
}

#[test]
fn whiteout_of_a_missing_name_is_ignored() {
    check(
        vec![
            Layer::new().file("a", "x"),
            Layer::new().file(".wh.b", "").file("no/.wh.c", "").file("a/.wh.d", "").file("no/.wh..wh..opq", ""),
        ],
        &[("a", "644 x")],
    );
}

#[test]
fn whiteout_spares_its_own_layer_in_any_order() {
    let lower = || Layer::new().file("d/old", "").file("e/old", "");
    check(
        vec![lower(), Layer::new().file(".wh.d", "").file("d/new", "").file("e/new", "").file(".wh.e", "")],
        &[("d", "755/"), ("d/new", "644 "), ("e", "755/"), ("e/new", "644 ")],
    );
}

#[test]
fn opaque_whiteout_removes_entries_of_lower_layers() {
    let lower = || Layer::new().file("d/old", "").file("d/sub/old", "").file("other", "");
    let expected = [("d", "755/"), ("d/sub", "755/"), ("d/sub/new", "644 "), ("other", "644 ")];
    check(vec![lower(), Layer::new().folder("d").file("d/.wh..wh..opq", "").file("d/sub/new", "")], &expected);
    check(vec![lower(), Layer::new().file("d/sub/new", "").file("d/.wh..wh..opq", "")], &expected);
}

#[test]
fn whiteout_affects_only_layers_below() {
    check(
        vec![Layer::new().file("a", "1"), Layer::new().file(".wh.a", ""), Layer::new().file("a", "3")],
        &[("a", "644 3")],
    );
}

#[test]
fn internal_files_of_aufs_are_ignored() {
    check(vec![Layer::new().folder(".wh..wh.plnk").file(".wh..wh.aufs", "").file("a", "")], &[("a", "644 ")]);
}

#[test]
fn folder_over_a_folder_keeps_children_and_changes_mode() {
    let upper = Layer::new().put("d/", tar::EntryType::Directory, b"", |header| header.set_mode(0o1777));
    check(vec![Layer::new().folder("d").file("d/x", ""), upper], &[("d", "1777/"), ("d/x", "644 ")]);
}

#[test]
fn entries_of_different_kinds_replace_each_other() {
    check(
        vec![
            Layer::new().symlink("link", "to").folder("folder").file("folder/x", "").file("file", "").folder("d2"),
            Layer::new().folder("link").file("link/x", "").symlink("folder", "to").folder("file").file("d2", "f"),
        ],
        &[("d2", "644 f"), ("file", "755/"), ("folder", "-> to"), ("link", "755/"), ("link/x", "644 ")],
    );
}

#[test]
fn missing_parents_are_created_and_replace_files() {
    check(
        vec![Layer::new().file("a/b/c", "x").file("f", ""), Layer::new().file("f/g", "y")],
        &[("a", "755/"), ("a/b", "755/"), ("a/b/c", "644 x"), ("f", "755/"), ("f/g", "644 y")],
    );
}

#[test]
fn entries_follow_symbolic_links() {
    check(
        vec![
            Layer::new().folder("usr/lib").symlink("lib", "usr/lib").symlink("abs", "/usr/lib").symlink("gone", "new"),
            Layer::new().file("lib/a", "").file("abs/b", "").file("gone/c", "").file("lib/.wh.nothing", ""),
            Layer::new().file("lib/.wh.b", ""),
        ],
        &[
            ("abs", "-> /usr/lib"),
            ("gone", "-> new"),
            ("lib", "-> usr/lib"),
            ("new", "755/"),
            ("new/c", "644 "),
            ("usr", "755/"),
            ("usr/lib", "755/"),
            ("usr/lib/a", "644 "),
        ],
    );
}

#[test]
fn symbolic_links_cannot_leave_the_image() {
    check(
        vec![Layer::new().symlink("out", "../../../tmp").file("out/evil", "x")],
        &[("out", "-> ../../../tmp"), ("tmp", "755/"), ("tmp/evil", "644 x")],
    );
}

#[test]
fn rejects_cycles_of_symbolic_links() {
    check_rejected(
        vec![Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "")],
        r#"the entry "a/x" cannot be used: its path has more than 40 symbolic links"#,
    );
}

#[test]
fn rejects_hard_links_to_missing_targets_and_folders() {
    check_rejected(
        vec![Layer::new().hard_link("b", "a")],
        r#"it is a hard link to "a", which was not found in lower layers or earlier in this layer"#,
    );
    check_rejected(vec![Layer::new().folder("a").hard_link("b", "a")], r#"it is a hard link to the folder "a""#);
    check_rejected(vec![Layer::new().hard_link("b", "../a")], "the target of its link is invalid");
    let gone = Layer::new().file(".wh.a", "").hard_link("b", "a");
    check_rejected(vec![Layer::new().file("a", ""), gone], r#"it is a hard link to "a", which was not found"#);
    check_rejected(vec![Layer::new().hard_link("a", "a")], r#"it is a hard link to "a", which was not found"#);
    check_rejected(vec![Layer::new().hard_link("a", "b").hard_link("b", "a")], r#"it is a hard link to "b""#);
}

#[test]
fn accepts_absolute_names_and_rejects_parent_components() {
    check(vec![Layer::new().file("/etc/x", "y")], &[("etc", "755/"), ("etc/x", "644 y")]);
    check_rejected(
        vec![Layer::new().file("etc/../../x", "y")],
        r#"the entry "etc/../../x" cannot be used: its name is invalid: it contains the component '..'"#,
    );
}

#[test]
fn root_folder_cannot_be_replaced() {
    check(vec![Layer::new().folder("./").file("a", "")], &[("a", "644 ")]);
    check_rejected(vec![Layer::new().symlink("./", "x")], "it would replace the root folder");
}

#[test]
fn content_of_any_size_is_kept() {
    // Sizes around the thresholds at which the writer inlines, pads, and switches from memory to a stream.
    let sizes = [0, 1, 511, 512, 4000, 4095, 4096, 4097, 8192, 65_537, 300_000];
    let content = |size: usize| "0123456789abcdef".chars().cycle().take(size).collect::<String>();
    let layer = sizes.iter().fold(Layer::new(), |layer, size| layer.file(&format!("{size:06}"), &content(*size)));
    let names: Vec<_> = sizes.iter().map(|size| (format!("{size:06}"), format!("644 {}", content(*size)))).collect();
    let expected: Vec<_> = names.iter().map(|(name, entry)| (name.as_str(), entry.as_str())).collect();
    check(vec![layer], &expected);
}

#[test]
fn folder_may_have_many_entries() {
    let names: Vec<String> = (0..2000).map(|at| format!("d/entry-with-a-longer-name-{at:05}")).collect();
    let layer = names.iter().fold(Layer::new(), |layer, name| layer.file(name, ""));
    let mut expected = vec![("d", "755/")];
    expected.extend(names.iter().map(|name| (name.as_str(), "644 ")));
    check(vec![layer], &expected);
}

#[tokio::test]
async fn merging_again_gives_the_same_bytes() {
    let mut layer = Layer::new().pax(&[("SCHILY.xattr.user.b", b"1"), ("SCHILY.xattr.user.a", b"2")]).file("x", "y");
    for number in 0..500_usize {
        let folder = number % 7;
        layer = layer.file(&format!("{folder}/{number}"), &"text".repeat(number * 5));
        layer = layer.hard_link(&format!("{}/link-{number}", folder + 3), &format!("{folder}/{number}"));
    }
    let layout = Layout::of(vec![layer, Layer::new().file("3/.wh.10", "").folder("8")]);
    let first = layout.prepare().await.unwrap().erofs;
    let image = format!("oci:{}", layout.path().display()).parse().unwrap();
    let second = ImageStore::open(layout.cache().join("other")).unwrap().prepare(&image).await.unwrap().erofs;
    assert_ne!(first, second);
    assert!(fs::read(first).unwrap() == fs::read(second).unwrap(), "the merged images differ");
}
