// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Hard links: all names have one inode in the merged image, whose number and number of links are right.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tar::EntryType;
use waggle_shared::causes::chain;

use crate::layout::{Layer, Layout, inode, tree};

fn merge(layout: &Layout) -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(layout.prepare()).unwrap_or_else(|fault| panic!("{}", chain(&fault))).erofs
}

/// Returns the number of an inode, and how many links it has.
fn identity(erofs: &Path, path: &str) -> (u64, u64) {
    let text = inode(erofs, path);
    let number = |label: &str| {
        let (_, after) = text.split_once(label).unwrap_or_else(|| panic!("no {label} in {text}"));
        after.split_whitespace().next().unwrap().parse().unwrap()
    };
    (number("NID: "), number("Links: "))
}

/// Checks that the paths of each group have one inode with that many links, and that the groups differ.
#[track_caller]
fn check(layers: Vec<Layer>, groups: &[&[&str]]) -> (Layout, PathBuf) {
    let layout = Layout::of(layers);
    let erofs = merge(&layout);
    let mut numbers = Vec::new();
    for group in groups {
        let (number, _) = identity(&erofs, group[0]);
        for path in *group {
            assert_eq!(identity(&erofs, path), (number, group.len() as u64), "{path}");
        }
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), groups.len(), "groups have the same inode");
    (layout, erofs)
}

#[test]
fn names_of_a_hard_link_share_an_inode() {
    let device =
        |header: &mut tar::Header| header.set_device_major(1).and_then(|()| header.set_device_minor(3)).unwrap();
    let layer = Layer::new()
        .put("a", EntryType::Regular, b"x", |header| header.set_mode(0o755))
        .file("other", "x")
        .hard_link("d/b", "a")
        .hard_link("d/c", "/d/b")
        .symlink("s", "a")
        .hard_link("t", "./s")
        .put("null", EntryType::Char, b"", device)
        .hard_link("zero", "null")
        .put("pipe", EntryType::Fifo, b"", |_| {})
        .hard_link("pipe2", "pipe");
    let groups: [&[&str]; 5] =
        [&["/a", "/d/b", "/d/c"], &["/other"], &["/s", "/t"], &["/null", "/zero"], &["/pipe", "/pipe2"]];
    let (_layout, erofs) = check(vec![layer], &groups);
    let found = tree(&erofs);
    assert_eq!(["a", "d/b", "d/c", "s", "t"].map(|path| &*found[path]), ["755 x", "755 x", "755 x", "-> a", "-> a"]);
}

#[test]
fn replacing_a_name_breaks_its_link_only() {
    let lower = || Layer::new().file("a", "old").hard_link("b", "a").hard_link("c", "a");
    let (_layout, erofs) = check(vec![lower(), Layer::new().file("a", "new")], &[&["/a"], &["/b", "/c"]]);
    let found = tree(&erofs);
    assert_eq!(["a", "b", "c"].map(|path| &*found[path]), ["644 new", "644 old", "644 old"]);
    // In one layer, a link has the target as it is at the link's place in the archive.
    let layer = Layer::new().file("a", "old").hard_link("b", "a").file("a", "new").hard_link("c", "a");
    let (_layout, erofs) = check(vec![layer], &[&["/a", "/c"], &["/b"]]);
    assert_eq!((&*tree(&erofs)["b"], &*tree(&erofs)["c"]), ("644 old", "644 new"));
}

#[test]
fn whiteout_of_a_name_leaves_the_others() {
    let lower = || Layer::new().file("a", "x").hard_link("b", "a").hard_link("d/c", "a");
    let (_layout, erofs) = check(vec![lower(), Layer::new().file(".wh.a", "")], &[&["/b", "/d/c"]]);
    assert_eq!(tree(&erofs).into_keys().collect::<Vec<_>>(), ["b", "d", "d/c"]);
    let (_layout, erofs) = check(vec![lower(), Layer::new().file("d/.wh..wh..opq", "").file(".wh.a", "")], &[&["/b"]]);
    assert_eq!(tree(&erofs)["b"], "644 x");
}

#[test]
fn links_reach_into_lower_layers() {
    // Build tools repeat the target in the layer of the link, or not.
    let lower = || Layer::new().file("a", "x").hard_link("b", "a");
    check(vec![lower(), Layer::new().hard_link("c", "a")], &[&["/a", "/b", "/c"]]);
    check(vec![lower(), Layer::new().file("a", "x").hard_link("c", "a")], &[&["/a", "/c"], &["/b"]]);
    check(vec![lower(), Layer::new().hard_link("c", "b").file(".wh.a", "")], &[&["/b", "/c"]]);
    check(vec![lower(), Layer::new().hard_link("a", "a").hard_link("b", "b")], &[&["/a", "/b"]]);
}

#[test]
fn links_through_symbolic_links_share_the_inode() {
    let layer = Layer::new().file("usr/lib/a", "x").symlink("lib", "usr/lib").hard_link("lib/b", "lib/a");
    check(vec![layer], &[&["/usr/lib/a", "/usr/lib/b"]]);
}

#[test]
fn archive_of_real_links_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/busybox"), vec![7; 1_000_000]).unwrap();
    for applet in 0..400 {
        fs::hard_link(root.join("bin/busybox"), root.join(format!("bin/applet-{applet}"))).unwrap();
    }
    let tar = Command::new("tar").arg("--create").arg("--directory").arg(&root).arg(".").output().unwrap();
    assert!(tar.status.success());
    let layout = Layout::new();
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar.stdout);
    layout.index(&[layout.manifest(&[layer])]);
    let erofs = merge(&layout);
    assert_eq!(identity(&erofs, "/bin/busybox"), identity(&erofs, "/bin/applet-399"));
    assert_eq!(identity(&erofs, "/bin/busybox").1, 401);
    let bytes = fs::metadata(&erofs).unwrap().len();
    assert!(bytes < 1_100_000, "the merged image has {bytes} bytes");
}

#[test]
fn links_take_time_and_space_for_names_only() {
    let mut layer = Layer::new().file("target", &"x".repeat(1 << 20));
    for link in 0..100_000 {
        layer = layer.hard_link(&format!("links/{link}"), "target");
    }
    let layout = Layout::of(vec![layer]);
    let erofs = merge(&layout);
    assert_eq!(identity(&erofs, "/target").1, 100_001);
    assert_eq!(identity(&erofs, "/links/99999"), identity(&erofs, "/target"));
    let bytes = fs::metadata(&erofs).unwrap().len();
    assert!(bytes < 4 << 20, "the merged image has {bytes} bytes");
}
