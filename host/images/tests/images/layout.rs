// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Generated OCI layouts, and an independent reader of the resulting EROFS images.

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::TempDir;
use waggle_images::cache::{ImageStore, PrepareFault, PreparedImage};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The folder of merged images in the cache.
pub(crate) const MERGED: &str = "merged-v4";

/// A layer's archive.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Adds an entry without checking its name; `change` edits the header last.
    pub(crate) fn put(mut self, name: &str, kind: EntryType, content: &[u8], change: impl Fn(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.put(name, EntryType::Regular, content.as_bytes(), |_| {})
    }

    pub(crate) fn folder(self, name: &str) -> Self {
        self.put(name, EntryType::Directory, b"", |_| {})
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.put(name, EntryType::Symlink, b"", |header| header.set_link_name_literal(target).unwrap())
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.put(name, EntryType::Link, b"", |header| header.set_link_name_literal(target).unwrap())
    }

    /// Adds extended headers for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(Cursor::new(content), 1).unwrap()
}

/// A layout's folder, and a cache folder.
pub(crate) struct Layout {
    folder: TempDir,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Self { folder };
        fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        layout
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Adds a blob and returns its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let hex = format!("{:x}", Sha256::digest(content));
        fs::write(self.path().join("blobs/sha256").join(&hex), content).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": content.len()})
    }

    pub(crate) fn json(&self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string().as_bytes())
    }

    pub(crate) fn config(&self, layers: usize, architecture: &str) -> Value {
        let diff_ids = vec![format!("sha256:{}", "0".repeat(64)); layers];
        self.json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture, "os": "linux", "config": {"Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        )
    }

    pub(crate) fn manifest(&self, layers: &[Value]) -> Value {
        self.manifest_for(layers, "amd64")
    }

    pub(crate) fn manifest_for(&self, layers: &[Value], architecture: &str) -> Value {
        let config = self.config(layers.len(), architecture);
        let content = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.json(OCI_MANIFEST, &content)
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let content = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        fs::write(self.path().join("index.json"), content.to_string()).unwrap();
    }

    /// Creates a layout with one untagged image. The layers are stored as plain tars.
    pub(crate) fn of(layers: Vec<Layer>) -> Self {
        let layout = Self::new();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<_> = layers.into_iter().map(|layer| layout.blob(media_type, &layer.tar())).collect();
        layout.index(&[layout.manifest(&layers)]);
        layout
    }

    pub(crate) async fn prepare(&self) -> Result<PreparedImage, Arc<PrepareFault>> {
        self.prepare_tag("").await
    }

    /// Prepares the image with this tag; `tag` starts with a colon.
    pub(crate) async fn prepare_tag(&self, tag: &str) -> Result<PreparedImage, Arc<PrepareFault>> {
        let image = format!("oci:{}{tag}", self.path().display()).parse().unwrap();
        ImageStore::open(self.cache()).unwrap().prepare(&image).await
    }
}

pub(crate) fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    descriptor
}

pub(crate) fn for_platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

/// Runs a tool of erofs-utils, which shares no code with our writer.
fn erofs_tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("failed to run {program} of erofs-utils: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Returns the entries of an image by path, each as `755/`, `644 CONTENT`, `644 special` or `-> TARGET`.
pub(crate) fn tree(erofs: &Path) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    erofs_tool(
        "fsck.erofs",
        &["--preserve-perms", "--no-preserve-owner", &format!("--extract={}", root.display()), erofs.to_str().unwrap()],
    );
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        let described = if metadata.is_dir() {
            walk(root, &path, found);
            format!("{mode:o}/")
        } else if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if !metadata.is_file() {
            format!("{mode:o} special")
        } else {
            format!("{mode:o} {}", String::from_utf8(fs::read(&path).unwrap()).unwrap())
        };
        found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), described);
    }
}

/// Returns the output of `dump.erofs` for an inode, with all white space replaced by single spaces.
pub(crate) fn inode(erofs: &Path, path: &str) -> String {
    let text = erofs_tool("dump.erofs", &[&format!("--path={path}"), erofs.to_str().unwrap()]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
