// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the image store: choosing an image of a layout, sharing work between callers, and evicting files.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::json;
use waggle_images::{
    cache::{EvictionRules, ImageStore, ImageStoreSettings, Verified},
    reference::ImageRef,
};
use waggle_shared::causes::chain;

use crate::{
    layout::{Layer, Layout, MERGED, OCI_INDEX, for_platform, gzip, tagged, tree},
    registry::until,
};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != ".lock").collect();
    names.sort();
    names
}

#[tokio::test]
async fn tag_selects_the_image_and_defaults_to_latest() {
    let layout = Layout::new();
    let image = |content: &str| layout.manifest(&[layout.blob(PLAIN, &Layer::new().file("a", content).tar())]);
    layout.index(&[tagged(image("one"), "v1"), tagged(image("two"), "latest")]);
    for (tag, expected) in [(":v1", "644 one"), (":latest", "644 two"), ("", "644 two")] {
        let found = layout.prepare_tag(tag).await.unwrap();
        assert_eq!(tree(&found.erofs)["a"], expected, "{tag}");
    }
}

#[tokio::test]
async fn finds_the_platform_in_nested_indexes_after_attestations() {
    let layout = Layout::new();
    let image = |content: &str, architecture: &str| {
        let layer = layout.blob(PLAIN, &Layer::new().file("a", content).tar());
        for_platform(layout.manifest_for(&[layer], architecture), "linux", architecture)
    };
    let attestation = for_platform(layout.manifest(&[]), "unknown", "unknown");
    let manifests = [attestation, image("arm", "arm64"), image("amd", "amd64")];
    let inner = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": manifests}));
    layout.index(&[tagged(inner, "latest")]);
    let found = layout.prepare().await.unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    assert_eq!(tree(&found.erofs)["a"], "644 amd");
}

#[tokio::test]
async fn rejects_images_with_too_many_indexes() {
    let layout = Layout::new();
    let empty = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": []}));
    let outer = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": vec![empty; 64]}));
    layout.index(&[tagged(outer, "latest")]);
    let refusal = "more than 64 indexes would have to be read to find the image";
    let fault = layout.prepare().await.unwrap_err();
    assert!(chain(&fault).contains(refusal), "{}", chain(&fault));
}

#[tokio::test]
async fn accepts_docker_media_types() {
    let layout = Layout::new();
    let tar = gzip(&Layer::new().file("a", "x").tar());
    let layer = layout.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", &tar);
    let mut config = layout.config(1, "amd64");
    config["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let content = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let manifest = for_platform(layout.json(media_type, &content), "linux", "amd64");
    let list_type = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = json!({"schemaVersion": 2, "mediaType": list_type, "manifests": [manifest]});
    layout.index(&[layout.json(list_type, &list)]);
    let found = layout.prepare().await.unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    assert_eq!(tree(&found.erofs)["a"], "644 x");
}

#[tokio::test]
async fn archive_and_folder_give_the_same_file() {
    let layout = Layout::of(vec![Layer::new().file("a", "x")]);
    let from_folder = layout.prepare().await.unwrap();
    let archive = layout.cache().join("image.tar");
    let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
    builder.append_dir_all(".", layout.path()).unwrap();
    builder.finish().unwrap();
    let store = ImageStore::open(layout.cache().join("other")).unwrap();
    let image = format!("oci-archive:{}", archive.display()).parse().unwrap();
    let from_archive = store.prepare(&image).await.unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    assert_eq!(from_archive.erofs.file_name(), from_folder.erofs.file_name());
    assert_eq!(fs::read(&from_archive.erofs).unwrap(), fs::read(&from_folder.erofs).unwrap());
    fs::OpenOptions::new().write(true).open(&archive).unwrap().set_len(1000).unwrap();
    let fault = store.prepare(&image).await.unwrap_err();
    assert!(chain(&fault).contains("as a tar file"), "{}", chain(&fault));
}

#[tokio::test]
async fn merged_image_does_not_need_its_layers() {
    let layout = Layout::new();
    let layer = layout.blob(PLAIN, &Layer::new().file("a", "x").tar());
    layout.index(&[layout.manifest(std::slice::from_ref(&layer))]);
    let first = layout.prepare().await.unwrap();
    let blob = layout.path().join("blobs").join(layer["digest"].as_str().unwrap().replace(':', "/"));
    fs::remove_file(blob).unwrap();
    let second = layout.prepare().await.unwrap();
    assert_eq!((second.erofs, &second.env), (first.erofs, &first.env));
    assert_eq!(first.env, [("PATH".to_owned(), "/bin".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_one_image_share_one_file() {
    let layout = Layout::of(vec![Layer::new().file("a", &"x".repeat(1 << 20))]);
    let image = format!("oci:{}", layout.path().display()).parse().unwrap();
    let (store, other_process) = (ImageStore::open(layout.cache()).unwrap(), ImageStore::open(layout.cache()).unwrap());
    let found = tokio::join!(store.prepare(&image), store.prepare(&image), other_process.prepare(&image));
    let paths = [found.0.unwrap().erofs, found.1.unwrap().erofs, found.2.unwrap().erofs];
    assert_eq!(paths[0], paths[1]);
    assert_eq!(paths[0], paths[2]);
    assert_eq!(names(&layout.cache().join(MERGED)), [paths[0].file_name().unwrap().to_str().unwrap()]);
}

#[tokio::test]
async fn dropped_callers_leave_no_unfinished_files() {
    let layout = Layout::of(vec![Layer::new().file("a", &"x".repeat(8 << 20))]);
    let image: ImageRef = format!("oci:{}", layout.path().display()).parse().unwrap();
    let store = std::sync::Arc::new(ImageStore::open(layout.cache()).unwrap());
    for _ in 0..5 {
        let task = tokio::spawn({
            let (store, image) = (std::sync::Arc::clone(&store), image.clone());
            async move { store.prepare(&image).await.map(drop) }
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }
    let found = store.prepare(&image).await.unwrap_or_else(|fault| panic!("{}", chain(&fault)));
    assert_eq!(tree(&found.erofs)["a"].len(), "644 ".len() + (8 << 20));
    assert_eq!(names(&layout.cache().join(MERGED)), [found.erofs.file_name().unwrap().to_str().unwrap()]);
}

#[tokio::test]
async fn evicts_old_and_surplus_images_but_none_in_use() {
    let layout = Layout::of(vec![Layer::new().file("a", "x")]);
    let used = layout.prepare().await.unwrap();
    layout.index(&[layout.manifest(&[layout.blob(PLAIN, &Layer::new().tar())])]);
    let idle = layout.prepare().await.unwrap().erofs;
    // A file that another version merged.
    let other = layout.cache().join("merged-v0").join(idle.file_name().unwrap());
    fs::create_dir(other.parent().unwrap()).unwrap();
    fs::copy(&idle, &other).unwrap();
    let unfinished = other.with_file_name(".draft-dead");
    fs::write(&unfinished, "half").unwrap();
    let evict = |age_max: Option<Duration>, bytes_max| {
        let settings = ImageStoreSettings {
            cache_dir: layout.cache(),
            rules: EvictionRules { age_max, bytes_max, clients_bytes_max: None },
            ..ImageStoreSettings::default()
        };
        let removed = ImageStore::with_settings(settings).unwrap().evict();
        (removed.images, [&used.erofs, &idle, &other].map(|path| path.exists()))
    };
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(evict(Some(day), Some(1 << 30)), (0, [true, true, true]));
    assert!(!unfinished.exists());
    for path in [&used.erofs, &other] {
        fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - 2 * day).unwrap();
    }
    assert_eq!(evict(Some(day), None), (1, [true, true, false]));
    assert_eq!(evict(None, Some(1)), (1, [true, false, false]));
    drop(used.lease);
    assert_eq!(evict(Some(day), None), (1, [false, false, false]));
}

#[tokio::test]
async fn removes_drafts_of_dead_processes_only() {
    let layout = Layout::of(vec![Layer::new().file("a", "x")]);
    let found = layout.prepare().await.unwrap();
    let folder = layout.cache().join(MERGED);
    fs::write(folder.join(".draft-dead"), "half").unwrap();
    let living = fs::File::create(folder.join(".draft-living")).unwrap();
    living.lock().unwrap();
    let before = found.erofs.metadata().unwrap();
    ImageStore::open(layout.cache()).unwrap();
    assert_eq!(names(&folder), [".draft-living", found.erofs.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(found.erofs.metadata().unwrap().ino(), before.ino());
    drop(living);
    ImageStore::open(layout.cache()).unwrap();
    assert_eq!(names(&folder), [found.erofs.file_name().unwrap().to_str().unwrap()]);
}

/// Flips a byte in the middle of a file.
fn damage(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[tokio::test]
async fn damaged_image_is_found_at_its_first_use_and_merged_again() {
    let layout = Layout::of(vec![Layer::new().file("a", &"x".repeat(1 << 20))]);
    let image: ImageRef = format!("oci:{}", layout.path().display()).parse().unwrap();
    let open = || {
        let store = ImageStore::open(layout.cache()).unwrap();
        store.verify_in_background();
        store
    };
    let first = open();
    let merged = first.prepare(&image).await.unwrap().erofs;
    let whole = fs::read(&merged).unwrap();
    let name = image.to_string();
    assert_eq!(first.verify(&name).unwrap(), Verified::Whole);
    damage(&merged);
    // An image that this process has merged is not verified. Images are verified in order, so the removal of a second
    // one shows that the first one was left alone.
    first.prepare(&image).await.unwrap();
    let other = Layout::of(vec![Layer::new().file("b", "x")]);
    let other: ImageRef = format!("oci:{}", other.path().display()).parse().unwrap();
    let other_merged = ImageStore::open(layout.cache()).unwrap().prepare(&other).await.unwrap().erofs;
    damage(&other_merged);
    first.prepare(&other).await.unwrap();
    until("the other image is removed", || !other_merged.exists()).await;
    assert!(merged.exists());
    drop(first);

    let second = open();
    let used = second.prepare(&image).await.unwrap();
    until("the damaged image is removed", || !merged.exists()).await;
    // The next preparation does not lease the damaged file, which its users keep.
    let again = second.prepare(&image).await.unwrap();
    assert!(fs::read(&again.erofs).unwrap() == whole);
    assert_eq!((&used.erofs, second.verify(&name).unwrap()), (&merged, Verified::Whole));
    // A verification on request removes a damaged image, too, although it is in use.
    damage(&merged);
    assert_eq!(second.verify(&name).unwrap(), Verified::Damaged);
    assert_eq!(second.verify(&name).unwrap(), Verified::NotMerged);
    assert!(fs::read(&second.prepare(&image).await.unwrap().erofs).unwrap() == whole);
    assert!(second.verify("unknown").is_err());
}
