// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests that a merge keeps the attributes of entries: owners, modes, times, extended attributes, devices, long names.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    process::Command,
};

use tar::EntryType;
use waggle_shared::causes::chain;

use crate::layout::{Layer, Layout, gzip, inode, tree, zstd};

async fn erofs(layers: Vec<Layer>) -> (Layout, std::path::PathBuf) {
    let layout = Layout::of(layers);
    let image = layout.prepare().await.unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    (layout, image.erofs)
}

#[tokio::test]
async fn owners_modes_and_times_are_kept() {
    let layer = Layer::new()
        .put("su", EntryType::Regular, b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(70_000);
            header.set_gid(42);
        })
        .pax(&[("mtime", b"-1.5"), ("uid", b"3000000000")])
        .file("old", "");
    let (_layout, erofs) = erofs(vec![layer]).await;
    let su = inode(&erofs, "/su");
    assert!(su.contains("Uid: 70000 Gid: 42"), "{su}");
    assert_eq!(tree(&erofs)["su"], "4755 x");
    assert!(su.contains("Timestamp: 2023-11-14 22:13:20.000000000"), "{su}");
    let old = inode(&erofs, "/old");
    assert!(old.contains("1969-12-31 23:59:58.500000000"), "{old}");
    // Some versions of dump.erofs print the number as signed: 3000000000 - 2^32.
    assert!(old.contains("Uid: 3000000000") || old.contains("Uid: -1294967296"), "{old}");
}

#[tokio::test]
async fn devices_and_pipes_are_kept() {
    let device = |header: &mut tar::Header| {
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
    };
    let layer = Layer::new().put("char", EntryType::Char, b"", device).put("block", EntryType::Block, b"", device).put(
        "pipe",
        EntryType::Fifo,
        b"",
        |header| header.set_mode(0o600),
    );
    let (_layout, erofs) = erofs(vec![layer]).await;
    for (name, kind) in [("/char", "char dev"), ("/block", "block dev"), ("/pipe", "FIFO")] {
        let found = inode(&erofs, name);
        assert!(found.contains(kind), "{found}");
    }
    // The kernel's encoding of the device number: new_encode_dev(259, 70000).
    let rdev: u32 = (70_000 & 0xff) | (259 << 8) | ((70_000 & !0xff) << 12);
    let image = fs::read(&erofs).unwrap();
    assert_eq!(image.windows(4).filter(|window| **window == rdev.to_le_bytes()).count(), 2);
}

#[tokio::test]
async fn extended_attributes_are_kept_except_acls_and_overlayfs() {
    let capability = b"\x01\0\0\x02\0\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let layer = Layer::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb=\0"),
            ("SCHILY.xattr.system.posix_acl_access", b"dropped-acl"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"dropped-mark"),
        ])
        .file("ping", "x");
    let (_layout, erofs) = erofs(vec![layer]).await;
    let image = fs::read(&erofs).unwrap();
    let has = |bytes: &[u8]| image.windows(bytes.len()).any(|window| window == bytes);
    // Fields of an attribute: name length, namespace (6 is security, 1 is user), value length, name, value.
    assert!(has(&[&[10, 6, 20, 0][..], b"capability", capability].concat()));
    assert!(has(&[&[4, 1, 5, 0][..], b"note", b"a\nb=\0"].concat()));
    assert!(!has(b"dropped"));
    assert_eq!(tree(&erofs)["ping"], "644 x");
}

#[tokio::test]
async fn long_names_are_kept_in_gnu_and_pax_formats() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let target = "t".repeat(300);
    let gnu = Layer::new()
        .put("././@LongLink", EntryType::GNULongName, format!("{long}\0").as_bytes(), |_| {})
        .file("short", "gnu")
        .put("././@LongLink", EntryType::GNULongLink, format!("{target}\0").as_bytes(), |_| {})
        .symlink("l", "short");
    let pax = Layer::new().pax(&[("path", format!("{long}.").as_bytes())]).file("short", "pax");
    let (_layout, image) = erofs(vec![gnu]).await;
    let found = tree(&image);
    assert_eq!(found[&long], "644 gnu");
    assert_eq!(found["l"], format!("-> {target}"));
    let fault = Layout::of(vec![pax]).prepare().await.unwrap_err();
    assert!(chain(&fault).contains("a component of 256 bytes"), "{}", chain(&fault));
    let pax = Layer::new().pax(&[("path", long.as_bytes()), ("linkpath", target.as_bytes())]).symlink("short", "x");
    let (_layout, image) = erofs(vec![pax]).await;
    assert_eq!(tree(&image)[&long], format!("-> {target}"));
}

#[tokio::test]
async fn names_outside_ascii_are_kept() {
    let (_layout, image) = erofs(vec![Layer::new().file("é/ű ñ", "x")]).await;
    assert_eq!(tree(&image)["é/ű ñ"], "644 x");
}

#[tokio::test]
async fn compression_is_what_the_first_bytes_of_a_layer_say() {
    let content = Layer::new().file("a", &"text ".repeat(1000)).tar();
    let (first, second) = content.split_at(700);
    let skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let blobs = [
        content.clone(),
        gzip(&content),
        [gzip(first), gzip(second)].concat(),
        zstd(&content),
        [zstd(first), zstd(second)].concat(),
        [skipped, zstd(&content)].concat(),
    ];
    let media_types =
        ["", "+gzip", "+zstd", "+lzma", ".gzip"].map(|end| format!("application/vnd.oci.image.layer.v1.tar{end}"));
    let media_types = media_types.into_iter().chain(["application/octet-stream".to_owned()]);
    for (media_type, blob) in
        media_types.flat_map(|media_type| blobs.iter().map(move |blob| (media_type.clone(), blob)))
    {
        let layout = Layout::new();
        layout.index(&[layout.manifest(&[layout.blob(&media_type, blob)])]);
        let image = layout.prepare().await.unwrap_or_else(|fault| panic!("{media_type}: {}", chain(&fault)));
        assert_eq!(tree(&image.erofs)["a"], format!("644 {}", "text ".repeat(1000)), "{media_type}");
    }
}

/// Creates a layer with GNU tar, from one file with many holes. Returns the layer and the file's content.
fn sparse_layer(options: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("holes")).unwrap();
    // The file has more parts than fit into the header and the first block after the header, and ends with a hole.
    let bytes = 64 << 20;
    file.set_len(bytes).unwrap();
    for at in 0..40 {
        file.write_all_at(format!("part {at}").as_bytes(), at * (1 << 20) + 4096 * (at % 3)).unwrap();
    }
    let tar = Command::new("tar")
        .args(["--create", "--sparse", "--owner=0", "--group=0", "--directory"])
        .arg(folder.path())
        .args(options)
        .arg("holes")
        .output()
        .unwrap();
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    assert!((tar.stdout.len() as u64) < bytes / 10, "tar stored the holes: {} bytes", tar.stdout.len());
    (tar.stdout, fs::read(folder.path().join("holes")).unwrap())
}

#[tokio::test]
async fn sparse_files_of_all_formats_are_restored() {
    for options in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let (tar, content) = sparse_layer(options);
        let layout = Layout::new();
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar);
        layout.index(&[layout.manifest(&[layer])]);
        let image = layout.prepare().await.unwrap_or_else(|fault| panic!("{options:?}: {}", chain(&fault)));
        let found = tree(&image.erofs);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["holes"], "{options:?}");
        let (_mode, found) = found["holes"].split_once(' ').unwrap();
        assert!(found.as_bytes() == content, "{options:?}: the content differs");
        let disk_bytes = fs::metadata(&image.erofs).unwrap().blocks() * 512;
        assert!(disk_bytes < 8 << 20, "{options:?}: the holes take space: {disk_bytes} bytes");
    }
}

#[tokio::test]
async fn rejects_invalid_and_huge_sparse_files() {
    let of_size = |bytes: u64| {
        Layer::new().put("s", EntryType::GNUSparse, b"", |header| {
            let header = header.as_gnu_mut().unwrap();
            header.realsize[..11].copy_from_slice(format!("{bytes:011o}").as_bytes());
        })
    };
    let invalid = "the entry \"s\" is a sparse file with an invalid map";
    for (layer, expected) in [
        (Layer::new().pax(&[("GNU.sparse.major", b"1")]).file("s", ""), invalid),
        (Layer::new().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,9")]).file("s", "short"), invalid),
        (
            Layer::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")]).file("s", "1\n0\n9\n"),
            invalid,
        ),
        (
            Layer::new().pax(&[("GNU.sparse.map", b"0,x")]).file("s", ""),
            "the value of GNU.sparse.map is invalid; must be a number",
        ),
        (of_size(1 << 30), "it expands to more than 200 times its size"),
    ] {
        let text = chain(&Layout::of(vec![layer]).prepare().await.unwrap_err());
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn rejects_unknown_entry_types() {
    let layer = Layer::new().put("v", EntryType::new(b'V'), b"", |_| {});
    let text = chain(&Layout::of(vec![layer]).prepare().await.unwrap_err());
    assert!(text.contains(r#"the entry "v" has the unknown type 'V'"#), "{text}");
}
