// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Invalid layouts and corrupt layers. Each fault has a specific error and leaves no files in the cache.

use std::{
    fs,
    io::{Seek as _, Write as _},
    process::Command,
};

use serde_json::{Value, json};
use waggle_shared::causes::chain;

use crate::layout::{Layer, Layout, MERGED, OCI_INDEX, OCI_MANIFEST, for_platform, gzip, tagged, zstd};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[track_caller]
fn check(layout: &Layout, tag: &str, expected: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = chain(&runtime.block_on(layout.prepare_tag(tag)).unwrap_err());
    assert!(text.contains(expected), "{text}\ndoes not contain: {expected}");
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

/// Creates a layout with one layer, and changes the layer's blob with `damage`.
fn damaged(media_type: &str, content: &[u8], damage: impl Fn(&std::path::Path)) -> Layout {
    let layout = Layout::new();
    let layer = layout.blob(media_type, content);
    damage(&blob_path(&layout, &layer));
    layout.index(&[layout.manifest(&[layer])]);
    layout
}

#[test]
fn rejects_folders_without_layout_files() {
    let layout = good();
    fs::remove_file(layout.path().join("index.json")).unwrap();
    check(&layout, "", r#"is not an OCI layout: the file "index.json" is missing"#);
    fs::remove_file(layout.path().join("oci-layout")).unwrap();
    check(&layout, "", r#"is not an OCI layout: the file "oci-layout" is missing"#);
    fs::remove_dir_all(layout.path()).unwrap();
    check(&layout, "", "failed to open");
}

#[test]
fn rejects_invalid_documents() {
    let layout = good();
    fs::write(layout.path().join("index.json"), "{").unwrap();
    check(&layout, "", "index.json is not valid: EOF");
    fs::write(layout.path().join("index.json"), vec![b' '; 5 * 1024 * 1024]).unwrap();
    check(&layout, "", "index.json has 5242880 bytes; at most 4194304 are allowed");
    let content = json!({"schemaVersion": 2, "mediaType": "text/plain", "manifests": []});
    fs::write(layout.path().join("index.json"), content.to_string()).unwrap();
    check(&layout, "", r#"index.json has the media type "text/plain"; must be an image index"#);
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    check(&layout, "", r#"the layout's version is "2.0.0""#);
}

#[test]
fn rejects_unsupported_media_types() {
    let layout = Layout::new();
    let manifest = layout.json("application/json", &json!({}));
    layout.index(&[manifest]);
    check(&layout, "", r#"has the media type "application/json"; must be an image manifest or an image index"#);
    for kind in ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json"] {
        let content = json!({"schemaVersion": 2, "config": layout.json(kind, &json!({})), "layers": []});
        layout.index(&[layout.json(OCI_MANIFEST, &content)]);
        check(&layout, "", &format!(r#"has the media type "{kind}"; must be the configuration of an image"#));
    }
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", b"");
    layout.index(&[layout.manifest(&[layer])]);
    check(&layout, "", "must be a layer that is not encrypted");
}

#[test]
fn unknown_tags_are_errors_that_list_the_tags() {
    let layout = Layout::new();
    layout.index(&[]);
    check(&layout, "", "the index contains no image");
    let manifest = layout.manifest(&[]);
    layout.index(&[tagged(manifest.clone(), "v1"), tagged(manifest.clone(), "v2")]);
    check(&layout, ":v3", r#"tag "v3" not found in the layout; existing tags: v1, v2"#);
    let expected = "has several images, and none is tagged latest; add :TAG to choose one; existing tags: v1, v2";
    check(&layout, "", expected);
    layout.index(&[manifest]);
    check(&layout, ":v1", r#"tag "v1" not found in the layout; its images have no tags"#);
}

#[test]
fn rejects_images_for_other_platforms() {
    let layout = Layout::new();
    layout.index(&[
        for_platform(layout.manifest(&[]), "linux", "arm64"),
        for_platform(layout.manifest(&[]), "windows", "amd64"),
    ]);
    check(&layout, "", "the image is for linux/arm64, windows/amd64; must be for linux/amd64");
    layout.index(&[layout.manifest_for(&[], "riscv64")]);
    check(&layout, "", "the image is for linux/riscv64; must be for linux/amd64");
}

#[test]
fn rejects_deeply_nested_indexes() {
    let layout = Layout::new();
    let mut inner = layout.manifest(&[]);
    for _ in 0..5 {
        inner = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    layout.index(&[inner]);
    check(&layout, "", "the image's indexes are nested more than 4 levels deep");
}

#[test]
fn rejects_mismatched_or_excessive_layer_counts() {
    let layout = Layout::new();
    let content = json!({"schemaVersion": 2, "config": layout.config(2, "amd64"), "layers": []});
    layout.index(&[layout.json(OCI_MANIFEST, &content)]);
    check(&layout, "", "the manifest has 0 layers and the configuration 2");
    let layers = vec![layout.blob(PLAIN, b""); 501];
    layout.index(&[layout.manifest(&layers)]);
    check(&layout, "", "the image has 501 layers; at most 500 are allowed");
}

#[test]
fn rejects_blobs_that_do_not_match_their_descriptors() {
    let content = Layer::new().file("a", "x").tar();
    check(&damaged(PLAIN, &content, |path| fs::remove_file(path).unwrap()), "", "is missing");
    check(
        &damaged(PLAIN, &content, |path| fs::write(path, b"short").unwrap()),
        "",
        &format!("has 5 bytes; its descriptor says {}", content.len()),
    );
    // Some of these changes also damage the archive's structure, but the error is always about the digest.
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
fn rejects_unsupported_and_invalid_digests() {
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
fn rejects_damaged_archives() {
    let content = Layer::new().file("a", &"x".repeat(2000)).tar();
    check(&damaged(PLAIN, &content[..1000], |_| {}), "", "the archive ends in the middle of an entry");
    check(&damaged(PLAIN, &content[..300], |_| {}), "", "the archive ends in the middle of an entry");
    check(&damaged(PLAIN, &[1; 1024], |_| {}), "", "invalid header after 0 entries");
    let compressed = gzip(&content);
    check(&damaged(GZIP, &compressed[..40], |_| {}), "", "the archive ends in the middle of an entry");
    let frame = zstd(&content);
    check(&damaged(GZIP, &frame[..frame.len() - 9], |_| {}), "", "the archive ends in the middle of an entry");
    let other = damaged("application/json", b"{}", |_| {});
    check(&other, "", r#"(media type "application/json"): its archive is damaged or not supported"#);
    let mut wrong_sum = compressed;
    let at = wrong_sum.len() - 6;
    wrong_sum[at] ^= 1;
    check(&damaged(GZIP, &wrong_sum, |_| {}), "", "corrupt gzip stream does not have a matching checksum");
    let no_record = Layer::new().put("x", tar::EntryType::XHeader, b"path=a", |_| {}).file("a", "");
    check(&Layout::of(vec![no_record]), "", "invalid extended header: invalid record; must be LENGTH KEY");
}

#[test]
fn error_names_an_unsupported_compression() {
    for (program, format) in [("bzip2", "bzip2"), ("xz", "xz"), ("lzma", "lzma")] {
        for content in [Layer::new().file("a", "x").tar(), Vec::new()] {
            let layout = damaged(GZIP, &compressed_by(program, &content), |_| {});
            check(&layout, "", &format!("it is compressed with {format}; must be gzip, zstd or a plain tar archive"));
        }
    }
    for (start, format) in [(&b"\x04\x22\x4d\x18\x64"[..], "lz4"), (b"LZIP\x01", "lzip")] {
        check(&damaged(PLAIN, start, |_| {}), "", &format!("it is compressed with {format}; must be"));
    }
}

fn compressed_by(program: &str, content: &[u8]) -> Vec<u8> {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(content).unwrap();
    input.rewind().unwrap();
    let output = Command::new(program).arg("--stdout").stdin(input).output();
    let output = output.unwrap_or_else(|error| panic!("failed to run {program} of bzip2 and xz-utils: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn rejects_huge_extension_headers() {
    let layer = Layer::new().put("x", tar::EntryType::XHeader, b"", |header| header.set_size(1 << 40));
    check(&Layout::of(vec![layer]), "", "an extended header has 1099511627776 bytes; at most 1048576 are allowed");
}

#[test]
fn rejects_layers_that_expand_too_much() {
    // 300 MiB of zeros in 1.3 MB.
    let header = Layer::new().put("zeros", tar::EntryType::Regular, b"", |header| header.set_size(300 << 20)).tar();
    let zeros = vec![0; 300 << 20];
    let blob = gzip(&[&header[..512], &zeros].concat());
    check(&damaged(GZIP, &blob, |_| {}), "", "it expands to more than 200 times its size");
}
