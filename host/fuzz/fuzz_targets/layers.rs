// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Merges hostile layers that consist of raw bytes or of generated entries. The merge must return a file or an error,
//! without a crash, must give the same file again, and must leave no file outside the cache.
#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use waggle_images::{
    merge::{FoundImage, ImageFault, MergeControl, Merged},
    reference::ImageRef,
};

struct Workspace {
    folder: TempDir,
    merged: Merged,
}

static WORKSPACE: LazyLock<Workspace> = LazyLock::new(|| {
    // Use memory if possible, because each input writes and syncs several files.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("failed to create a folder");
    let merged = Merged::open(&folder.path().join("cache")).expect("failed to open the cache");
    Workspace { folder, merged }
});

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    let layers = match how % 4 {
        0 => vec![rest.to_vec()],
        _ => match generated(&mut Unstructured::new(rest)) {
            Ok(layers) => layers,
            Err(_exhausted) => return,
        },
    };
    let Workspace { folder, merged } = &*WORKSPACE;
    let layout = folder.path().join("layout");
    let _absent = fs::remove_dir_all(&layout);
    write_layout(&layout, &layers);
    let image: ImageRef = format!("oci:{}", layout.display()).parse().expect("invalid reference");
    let merge = || {
        let found = FoundImage::on_this_machine(&image)?;
        let path = merged.merge(&found, &MergeControl::default())?;
        let content = fs::read(&path).expect("failed to read the image");
        fs::remove_file(path).expect("failed to remove the image");
        Ok::<_, ImageFault>(content)
    };
    match merge() {
        Ok(content) => {
            assert_eq!(content.len() % 4096, 0, "the image ends in the middle of a block");
            assert_eq!(&content[1024..1028], b"\xe2\xe1\xf5\xe0", "the image has no superblock");
            assert!(merge().is_ok_and(|again| again == content), "a second merge gives another image");
        }
        Err(fault) => drop(fault.to_string()),
    }
    let entries = fs::read_dir(folder.path()).expect("failed to list the folder");
    assert_eq!(entries.count(), 2, "a file was left outside the cache");
});

/// Names that collide, and names that try to leave the image.
const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "./a",
    "b",
    "b/a",
    "/a",
    "../a",
    "a/../../b",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".",
    "",
    "l/x",
    "l",
];

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    name: u8,
    raw_name: Option<&'a [u8]>,
    kind: u8,
    target: u8,
    mode: u32,
    id: u64,
    mtime: u64,
    device: u32,
    content: &'a [u8],
    wrong_size: Option<u64>,
}

fn generated(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<Vec<u8>>> {
    let mut layers = Vec::new();
    while !input.is_empty() && layers.len() < 4 {
        let mut archive = Builder::new(Vec::new());
        for _ in 0..input.int_in_range(0..=12)? {
            put(&mut archive, &Entry::arbitrary(input)?);
        }
        layers.push(archive.into_inner().unwrap_or_default());
    }
    Ok(layers)
}

fn put(archive: &mut Builder<Vec<u8>>, entry: &Entry<'_>) {
    let kinds = [b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'x', b'g', b'L', b'K', b'S', 0];
    let name = entry.raw_name.unwrap_or_else(|| NAMES[usize::from(entry.name) % NAMES.len()].as_bytes());
    let mut header = Header::new_ustar();
    for (to, from) in header.as_old_mut().name.iter_mut().zip(name) {
        *to = *from;
    }
    for (to, from) in
        header.as_old_mut().linkname.iter_mut().zip(NAMES[usize::from(entry.target) % NAMES.len()].bytes())
    {
        *to = from;
    }
    header.set_entry_type(EntryType::new(kinds[usize::from(entry.kind) % kinds.len()]));
    header.set_mode(entry.mode);
    header.set_uid(entry.id);
    header.set_gid(entry.id >> 3);
    header.set_mtime(entry.mtime);
    header.set_size(entry.wrong_size.unwrap_or(entry.content.len() as u64));
    drop(header.set_device_major(entry.device));
    header.set_cksum();
    drop(archive.append(&header, entry.content));
}

fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("failed to create a folder");
    let add = |media_type: &str, bytes: &[u8]| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).expect("failed to write a blob");
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let described: Vec<_> = layers.iter().map(|layer| add("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let ids: Vec<_> = described.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = add("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": described,
    });
    let manifest = add("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("failed to write the index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("failed to write oci-layout");
}
