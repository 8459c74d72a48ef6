// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Broken layouts and corrupt layers: each has its own clear error, and leaves nothing behind.

use std::fs;

use serde_json::{Value, json};
use waggle::causes::chain;

use crate::layout::{Layer, Layout, MERGED, OCI_INDEX, OCI_MANIFEST, for_platform, gzip, tagged};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[track_caller]
fn check(layout: &Layout, tag: &str, expected: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = chain(&runtime.block_on(layout.prepare_tag(tag)).unwrap_err());
    assert!(text.contains(expected), "{text}\nlacks: {expected}");
    let left: Vec<_> = fs::read_dir(layout.cache().join(MERGED))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn good() -> Layout {
    Layout::of(vec![Layer::new().file("a", "x")])
}

fn blob_path(layout: &Layout, descriptor: &Value) -> std::path::PathBuf {
    layout.path().join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

/// A layout of one layer, which `damage` then changes.
fn damaged(media_type: &str, content: &[u8], damage: impl Fn(&std::path::Path)) -> Layout {
    let layout = Layout::new();
    let layer = layout.blob(media_type, content);
    damage(&blob_path(&layout, &layer));
    layout.index(&[layout.manifest(&[layer])]);
    layout
}

#[test]
fn a_folder_that_is_no_layout() {
    let layout = good();
    fs::remove_file(layout.path().join("index.json")).unwrap();
    check(&layout, "", r#"is not an OCI layout: it has no file "index.json""#);
    fs::remove_file(layout.path().join("oci-layout")).unwrap();
    check(&layout, "", r#"is not an OCI layout: it has no file "oci-layout""#);
    fs::remove_dir_all(layout.path()).unwrap();
    check(&layout, "", "failed to open");
}

#[test]
fn documents_that_are_not_what_they_should_be() {
    let layout = good();
    fs::write(layout.path().join("index.json"), "{").unwrap();
    check(&layout, "", "index.json is not valid: EOF");
    fs::write(layout.path().join("index.json"), vec![b' '; 5 * 1024 * 1024]).unwrap();
    check(&layout, "", "index.json has 5242880 bytes, and at most 4194304 are allowed");
    let content = json!({"schemaVersion": 2, "mediaType": "text/plain", "manifests": []});
    fs::write(layout.path().join("index.json"), content.to_string()).unwrap();
    check(&layout, "", r#"index.json has the media type "text/plain" where an image index is needed"#);
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    check(&layout, "", r#"the layout's version is "2.0.0""#);
}

#[test]
fn media_types_that_are_wrong() {
    let layout = Layout::new();
    let manifest = layout.json("application/json", &json!({}));
    layout.index(&[manifest]);
    check(&layout, "", r#"has the media type "application/json" where an image manifest or an image index is needed"#);
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+lzma", b"");
    layout.index(&[layout.manifest(&[layer])]);
    check(&layout, "", "where a layer as plain tar, gzip or zstd is needed");
}

#[test]
fn tags_that_are_not_there() {
    let layout = Layout::new();
    layout.index(&[]);
    check(&layout, "", "it holds no image");
    let manifest = layout.manifest(&[]);
    layout.index(&[tagged(manifest.clone(), "v1"), tagged(manifest.clone(), "v2")]);
    check(&layout, ":v3", r#"it has no image tagged "v3"; there are: v1, v2"#);
    check(&layout, "", "it holds several images and none is tagged latest: add :TAG; there are: v1, v2");
    layout.index(&[manifest]);
    check(&layout, ":v1", r#"it has no image tagged "v1"; its images have no tags"#);
}

#[test]
fn images_for_other_machines() {
    let layout = Layout::new();
    layout.index(&[
        for_platform(layout.manifest(&[]), "linux", "arm64"),
        for_platform(layout.manifest(&[]), "windows", "amd64"),
    ]);
    check(&layout, "", "the image is for linux/arm64, windows/amd64, and linux/amd64 is needed");
    layout.index(&[layout.manifest_for(&[], "riscv64")]);
    check(&layout, "", "the image is for linux/riscv64, and linux/amd64 is needed");
}

#[test]
fn indexes_without_end() {
    let layout = Layout::new();
    let mut inner = layout.manifest(&[]);
    for _ in 0..5 {
        inner = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    layout.index(&[inner]);
    check(&layout, "", "its indexes are nested more than 4 deep");
}

#[test]
fn a_manifest_and_a_configuration_that_differ() {
    let layout = Layout::new();
    let content = json!({"schemaVersion": 2, "config": layout.config(2, "amd64"), "layers": []});
    layout.index(&[layout.json(OCI_MANIFEST, &content)]);
    check(&layout, "", "the manifest has 0 layers and the configuration 2");
    let layers = vec![layout.blob(PLAIN, b""); 501];
    layout.index(&[layout.manifest(&layers)]);
    check(&layout, "", "the image has 501 layers, and at most 500 are allowed");
}

#[test]
fn blobs_that_are_not_what_was_named() {
    let content = Layer::new().file("a", "x").tar();
    check(&damaged(PLAIN, &content, |path| fs::remove_file(path).unwrap()), "", "is missing");
    check(
        &damaged(PLAIN, &content, |path| fs::write(path, b"short").unwrap()),
        "",
        &format!("has 5 bytes where its descriptor says {}", content.len()),
    );
    // Damage in the archive's structure: the digest is what is told.
    for at in [0, 200, content.len() - 1] {
        let layout = damaged(PLAIN, &content, |path| {
            let mut changed = content.clone();
            changed[at] ^= 1;
            fs::write(path, changed).unwrap();
        });
        check(&layout, "", "is corrupt: its content has the digest sha256:");
    }
    let layout = good();
    let index: Value = serde_json::from_slice(&fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let path = blob_path(&layout, &index["manifests"][0]);
    let manifest = String::from_utf8(fs::read(&path).unwrap()).unwrap();
    fs::write(&path, manifest.replace(r#""schemaVersion":2"#, r#""schemaVersion":3"#)).unwrap();
    check(&layout, "", "is corrupt");
}

#[test]
fn a_digest_of_another_kind() {
    let layout = Layout::new();
    let mut manifest = layout.manifest(&[]);
    let hex = "0".repeat(96);
    fs::create_dir(layout.path().join("blobs/sha384")).unwrap();
    fs::copy(blob_path(&layout, &manifest), layout.path().join("blobs/sha384").join(&hex)).unwrap();
    manifest["digest"] = json!(format!("sha384:{hex}"));
    layout.index(&[manifest.clone()]);
    check(&layout, "", "is neither sha256 nor sha512");
    manifest["digest"] = json!("sha256:../../../../etc/passwd");
    layout.index(&[manifest]);
    check(&layout, "", "index.json is not valid");
}

#[test]
fn layers_whose_archive_is_damaged() {
    let content = Layer::new().file("a", &"x".repeat(2000)).tar();
    check(&damaged(PLAIN, &content[..1000], |_| {}), "", "the archive ends in the middle of an entry");
    check(&damaged(PLAIN, &content[..300], |_| {}), "", "the archive ends in the middle of an entry");
    check(&damaged(PLAIN, &[1; 1024], |_| {}), "", "there is no valid header after 0 entries");
    let compressed = gzip(&content);
    check(&damaged(GZIP, &compressed[..40], |_| {}), "", "the archive ends in the middle of an entry");
    check(&damaged(GZIP, &content, |_| {}), "", "failed to read on: invalid gzip header");
    check(&damaged("application/vnd.oci.image.layer.v1.tar+zstd", &content, |_| {}), "", "failed to read on");
    let mut wrong_sum = compressed;
    let at = wrong_sum.len() - 6;
    wrong_sum[at] ^= 1;
    check(&damaged(GZIP, &wrong_sum, |_| {}), "", "corrupt gzip stream does not have a matching checksum");
    let no_record = Layer::new().put("x", tar::EntryType::XHeader, b"path=a", |_| {}).file("a", "");
    check(&Layout::of(vec![no_record]), "", "an extended header is malformed: a record is not of the form LENGTH KEY");
}

#[test]
fn extension_headers_do_not_fill_the_memory() {
    let layer = Layer::new().put("x", tar::EntryType::XHeader, b"", |header| header.set_size(1 << 40));
    check(&Layout::of(vec![layer]), "", "an extended header has 1099511627776 bytes, and at most 1048576 are allowed");
}

#[test]
fn a_layer_that_expands_without_end_is_cut_off() {
    // 300 MiB of zeros in 1.3 MB.
    let header = Layer::new().put("zeros", tar::EntryType::Regular, b"", |header| header.set_size(300 << 20)).tar();
    let zeros = vec![0; 300 << 20];
    let blob = gzip(&[&header[..512], &zeros].concat());
    check(&damaged(GZIP, &blob, |_| {}), "", "it expands to more than 200 times its size");
}
