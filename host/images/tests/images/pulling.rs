// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Pulls from registries. A reference is resolved, each blob is downloaded once, and an interrupted download resumes. A
//! failed pull leaves no partial files.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::StatusCode;
use serde_json::{Value, json};
use waggle_images::{
    cache::{EvictionRules, ImageStore, ImageStoreSettings, PrepareFault, Resolve},
    progress::Step,
    reference::ImageRef,
};
use waggle_shared::{causes::chain, disk_reserve::DiskReserve};

use crate::{
    layout::{Layer, Layout, MERGED, OCI_INDEX, OCI_MANIFEST, for_platform, gzip, tree, zstd},
    registry::{Registry, until},
};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// Creates an image with one layer, which has one file `a` with this content. Returns the layer and the manifest.
pub(crate) fn image(layout: &Layout, content: &str) -> (Value, Value) {
    let layer = layout.blob(PLAIN, &Layer::new().file("a", content).tar());
    let manifest = layout.manifest(std::slice::from_ref(&layer));
    (layer, manifest)
}

pub(crate) fn store(layout: &Layout) -> ImageStore {
    ImageStore::open(layout.cache()).unwrap()
}

pub(crate) async fn pull(store: &ImageStore, reference: &str) -> Result<String, String> {
    let prepared = store.prepare(&reference.parse().unwrap()).await.map_err(|fault| chain(&*fault))?;
    Ok(tree(&prepared.erofs)["a"].trim_start_matches("644 ").to_owned())
}

/// Returns the file names of the drafts in the cache.
fn drafts(cache: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["blobs", "blobs/sha256", "records", MERGED] {
        let names = fs::read_dir(cache.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        found.extend(names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with(".draft")));
    }
    found
}

#[tokio::test]
async fn pulls_tags_and_digests_of_oci_and_docker_indexes() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let layers = [
        layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&Layer::new().file("a", "1").tar())),
        layout.blob("application/vnd.oci.image.layer.v1.tar+zstd", &zstd(&Layer::new().file("b", "2").tar())),
        layout.blob(PLAIN, &Layer::new().file("c", "3").tar()),
    ];
    let manifest = layout.manifest(&layers);
    let arm = for_platform(layout.manifest_for(&[], "arm64"), "linux", "arm64");
    let amd = for_platform(manifest.clone(), "linux", "amd64");
    let index = layout.json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [arm, amd]}));
    let docker_list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let content = json!({"schemaVersion": 2, "mediaType": docker_list, "manifests": [amd]});
    let list = layout.json(docker_list, &content);
    let by_digest = format!("{}/bees/hive@{}", registry.host, index["digest"].as_str().unwrap());
    let store = store(&layout);
    for reference in [registry.tag("v1", &index), registry.tag("v2", &list), registry.tag("v3", &manifest), by_digest] {
        let prepared =
            store.prepare(&reference.parse().unwrap()).await.unwrap_or_else(|fault| panic!("{}", chain(&*fault)));
        let tree = tree(&prepared.erofs);
        assert_eq!((&*tree["a"], &*tree["b"], &*tree["c"]), ("644 1", "644 2", "644 3"), "{reference}");
    }
    // All four references have the same manifest, so each layer is downloaded once.
    assert_eq!(layers.map(|layer| registry.times(&layer)), [1, 1, 1]);
}

#[tokio::test]
async fn cached_image_needs_no_network_until_it_is_pulled_again() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "old").1);
    let store = store(&layout);
    assert_eq!(pull(&store, &reference).await.unwrap(), "old");
    registry.tag("v1", &image(&layout, "new").1);
    assert_eq!(pull(&store, &reference).await.unwrap(), "old");
    let parsed: ImageRef = reference.parse().unwrap();
    store.prepare_with(&parsed, Resolve::Always, &|_| {}).await.unwrap();
    assert_eq!(pull(&store, &reference).await.unwrap(), "new");
    drop(registry);
    assert_eq!(pull(&store, &reference).await.unwrap(), "new");
    let fault = store.prepare_with(&parsed, Resolve::Always, &|_| {}).await.unwrap_err();
    assert!(chain(&*fault).contains("failed to reach the registry 127.0.0.1:"), "{}", chain(&*fault));
    assert!(chain(&*fault).contains("skopeo copy docker://IMAGE oci:DIR:latest"), "{}", chain(&*fault));
    // The failed pull has removed nothing from the cache.
    assert_eq!(pull(&store, &reference).await.unwrap(), "new");
}

#[tokio::test]
async fn used_image_keeps_its_files() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "bees").1);
    let rules = EvictionRules { age_max: Some(7 * DAY), ..EvictionRules::default() };
    let cache_dir = layout.cache().to_owned();
    let settings = ImageStoreSettings { cache_dir: cache_dir.clone(), rules, ..ImageStoreSettings::default() };
    let store = ImageStore::with_settings(settings).unwrap();
    assert_eq!(pull(&store, &reference).await.unwrap(), "bees");
    drop(registry);
    for folder in ["blobs/sha256", "records", MERGED] {
        for entry in fs::read_dir(cache_dir.join(folder)).unwrap() {
            fs::File::open(entry.unwrap().path()).unwrap().set_modified(SystemTime::now() - 8 * DAY).unwrap();
        }
    }
    assert_eq!(pull(&store, &reference).await.unwrap(), "bees");
    // Only the layer is evicted, because a layer is not needed after the merge.
    let removed = store.evict();
    assert_eq!((removed.images, removed.files), (0, 1));
    assert_eq!(pull(&store, &reference).await.unwrap(), "bees");
}

#[tokio::test]
async fn interrupted_download_is_resumed() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, &"x".repeat(3 << 20));
    registry.behaviour().cuts = vec![100, 1 << 20, 2000];
    let content = pull(&store(&layout), &registry.tag("v1", &manifest)).await.unwrap();
    assert_eq!(content.len(), 3 << 20);
    let ranges: Vec<_> = registry.requests().into_iter().filter_map(|request| request.range).collect();
    assert!(ranges.iter().any(|range| range != "bytes=0-"), "{ranges:?}");
    assert_eq!(registry.times(&layer), 1 + 3);
}

#[tokio::test]
async fn download_restarts_if_the_registry_ignores_ranges() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (_, manifest) = image(&layout, &"x".repeat(1 << 20));
    *registry.behaviour() =
        crate::registry::Behaviour { ignores_ranges: true, cuts: vec![50, 700_000], ..Default::default() };
    assert_eq!(pull(&store(&layout), &registry.tag("v1", &manifest)).await.unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn download_without_progress_fails_after_its_retries() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, &"x".repeat(4 << 20));
    let cuts = [1 << 20, 3 << 20].repeat(10);
    *registry.behaviour() = crate::registry::Behaviour { ignores_ranges: true, cuts, ..Default::default() };
    let fault = pull(&store(&layout), &registry.tag("v1", &manifest)).await.unwrap_err();
    assert!(fault.contains("end of file before message length reached"), "{fault}");
    assert_eq!(registry.times(&layer), 7);
}

#[tokio::test]
async fn rejects_content_that_does_not_match_its_digest() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, "right");
    let digest = layer["digest"].as_str().unwrap().to_owned();
    let wrong = Layer::new().file("a", "wrong").tar();
    registry.behaviour().instead.insert(digest.clone(), wrong.clone());
    let reference = registry.tag("v1", &manifest);
    let store = store(&layout);
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains(&format!("sent content that does not match the digest {digest}")), "{fault}");
    assert!(!layout.cache().join("blobs").join(digest.replace(':', "/")).exists());
    registry.behaviour().instead.insert(digest.clone(), [wrong, vec![0; 512]].concat());
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("sent a blob of more than"), "{fault}");
    registry.behaviour().instead.clear();
    assert_eq!(pull(&store, &reference).await.unwrap(), "right");
    assert_eq!(drafts(&layout.cache()), [""; 0]);
}

#[tokio::test]
async fn damaged_blob_in_the_cache_is_downloaded_again() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, "right");
    let reference = registry.tag("v1", &manifest);
    let store = store(&layout);
    drop(store.prepare(&reference.parse().unwrap()).await.unwrap());
    fs::remove_dir_all(layout.cache().join(MERGED)).unwrap();
    fs::create_dir(layout.cache().join(MERGED)).unwrap();
    let blob = layout.cache().join("blobs").join(layer["digest"].as_str().unwrap().replace(':', "/"));
    let length = blob.metadata().unwrap().len();
    fs::write(&blob, vec![7; usize::try_from(length).unwrap()]).unwrap();
    assert_eq!(pull(&store, &reference).await.unwrap(), "right");
    assert_eq!(registry.times(&layer), 2);
}

#[tokio::test]
async fn reports_rejections_and_retries_temporary_errors() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    let store = store(&layout);
    let fault = pull(&store, &format!("{}/bees/hive:no", registry.host)).await.unwrap_err();
    assert!(fault.contains("the registry has no image") && fault.contains("check its name and tag"), "{fault}");
    registry.behaviour().blob_status = Some(StatusCode::GONE);
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("failed to send a blob: 410 Gone: no honey"), "{fault}");
    registry.behaviour().blob_status = Some(StatusCode::SERVICE_UNAVAILABLE);
    let waited = async {
        let pulled = pull(&store, &reference).await;
        pulled.unwrap()
    };
    let recovered = async {
        let before = registry.requests().len();
        until("the store has retried", || registry.requests().len() >= before + 5).await;
        registry.behaviour().blob_status = None;
    };
    assert_eq!(tokio::join!(waited, recovered).0, "x");
}

#[tokio::test]
async fn rejects_oversized_manifests() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.behaviour().endless_manifests = true;
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("sent a manifest of more than 4194304 bytes"), "{fault}");
}

#[tokio::test]
async fn endless_error_response_is_cut() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    *registry.behaviour() =
        crate::registry::Behaviour { blob_status: Some(StatusCode::GONE), endless_errors: true, ..Default::default() };
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("failed to send a blob: 410 Gone"), "{fault}");
}

#[tokio::test]
async fn rejects_oversized_layer_before_downloading_it() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let mut layer = image(&layout, "x").0;
    layer["size"] = json!(11_u64 << 30);
    let fault = pull(&store(&layout), &registry.tag("v1", &layout.manifest(&[layer]))).await.unwrap_err();
    assert!(fault.contains("has a layer of 11811160064 bytes; at most 10737418240 are allowed"), "{fault}");
    assert!(!registry.requests().iter().any(|request| request.path.contains("/blobs/")));
}

#[tokio::test]
async fn rejects_artifact_before_downloading_its_layers() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let layer = layout.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart");
    let config = layout.json("application/vnd.cncf.helm.config.v1+json", &json!({"name": "hive"}));
    let content = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let fault = pull(&store(&layout), &registry.tag("v1", &layout.json(OCI_MANIFEST, &content))).await.unwrap_err();
    assert!(fault.contains("must be the configuration of an image"), "{fault}");
    assert!(!registry.requests().iter().any(|request| request.path.contains("/blobs/")));
}

#[tokio::test]
async fn callers_share_a_pull_that_is_cancelled_with_the_last_of_them() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, "x");
    let reference = registry.tag("v1", &manifest);
    let store = Arc::new(store(&layout));
    let start = || {
        tokio::spawn({
            let (store, reference) = (Arc::clone(&store), reference.clone());
            async move { pull(&store, &reference).await }
        })
    };
    // Dropping all callers cancels the download and removes the draft.
    registry.shut_gate().await;
    let (one, two) = (start(), start());
    registry.blob_is_requested().await;
    one.abort();
    two.abort();
    assert!(one.await.unwrap_err().is_cancelled());
    assert!(two.await.unwrap_err().is_cancelled());
    until("the drafts are removed", || drafts(&layout.cache()).is_empty()).await;
    // If one caller is dropped, the other still gets the image, with a single download.
    let before = registry.times(&layer);
    let (one, two) = (start(), start());
    until("the layer is requested", || registry.times(&layer) > before).await;
    one.abort();
    assert!(one.await.unwrap_err().is_cancelled());
    registry.open_gate();
    assert_eq!(two.await.unwrap().unwrap(), "x");
    assert_eq!(registry.times(&layer), before + 1);
}

#[tokio::test]
async fn pull_reports_progress() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, &"x".repeat(1 << 20)).1);
    let reported = std::sync::Mutex::new(Vec::new());
    let report = |progress| reported.lock().unwrap().push(progress);
    store(&layout).prepare_with(&reference.parse().unwrap(), Resolve::IfUnknown, &report).await.unwrap();
    let reported = reported.into_inner().unwrap();
    let pull = reported.iter().find(|progress| progress.step == Step::Pull).unwrap();
    assert!(pull.total_bytes > 1 << 20, "{reported:?}");
    assert!(reported.windows(2).all(|pair| pair[0] < pair[1]), "{reported:?}");
}

#[tokio::test]
async fn image_is_not_pulled_below_the_reserve_but_a_merged_one_is_used() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, "bees");
    let (known, unknown) = (registry.tag("v1", &manifest), registry.tag("v2", &image(&layout, "wasps").1));
    assert_eq!(pull(&store(&layout), &known).await.unwrap(), "bees");
    // No disk has so much free space.
    let reserve = DiskReserve::from_mib(u32::MAX);
    let settings = ImageStoreSettings { cache_dir: layout.cache(), reserve, ..ImageStoreSettings::default() };
    let low = ImageStore::with_settings(settings).unwrap();
    assert_eq!(pull(&low, &known).await.unwrap(), "bees");
    let asked = registry.requests().len();
    let fault = pull(&low, &unknown).await.unwrap_err();
    let expected = format!("MiB free, and a reserve of {} MiB must remain free", u32::MAX);
    assert!(fault.contains("has too little free space for the image: ") && fault.contains(&expected), "{fault}");
    // The registry was asked for documents only, and nothing was evicted.
    let asked_for = &registry.requests()[asked..];
    assert!(asked_for.iter().all(|request| !request.path.contains("/blobs/")), "{asked_for:?}");
    assert_eq!((registry.times(&layer), pull(&low, &known).await.unwrap().as_str()), (1, "bees"));
    assert_eq!(drafts(&layout.cache()), [""; 0]);
    // The cached layers are not read, so even damage is not noticed.
    fs::remove_dir_all(layout.cache().join(MERGED)).unwrap();
    fs::create_dir(layout.cache().join(MERGED)).unwrap();
    let blob = layout.cache().join("blobs").join(layer["digest"].as_str().unwrap().replace(':', "/"));
    let damaged = vec![7; usize::try_from(blob.metadata().unwrap().len()).unwrap()];
    fs::write(&blob, &damaged).unwrap();
    let fault = pull(&low, &known).await.unwrap_err();
    assert!(fault.contains("has too little free space for the image: "), "{fault}");
    assert!(fs::read(&blob).unwrap() == damaged);
}

#[tokio::test]
async fn local_image_is_not_merged_below_the_reserve() {
    let layout = Layout::of(vec![Layer::new().file("a", "x")]);
    let reserve = DiskReserve::from_mib(u32::MAX);
    let settings = ImageStoreSettings { cache_dir: layout.cache(), reserve, ..ImageStoreSettings::default() };
    let image = format!("oci:{}", layout.path().display()).parse().unwrap();
    let fault = ImageStore::with_settings(settings).unwrap().prepare(&image).await.unwrap_err();
    assert!(matches!(&*fault, PrepareFault::LowDisk { .. }), "{}", chain(&fault));
    assert_eq!(drafts(&layout.cache()), [""; 0]);
}

/// A registry's texts may hold control characters, and more text than an error should.
#[tokio::test]
async fn text_of_a_registry_is_escaped_and_limited() {
    const FORGED: &str = "x\n2026-01-01T00:00:00Z ERROR waggle: forged\u{1b}[2J\u{202e}";
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let check = |fault: &str| {
        assert!(!fault.contains(|letter: char| letter.is_control() || letter == '\u{202e}'), "{fault:?}");
        assert!(fault.len() <= 2100, "{} bytes", fault.len());
    };
    let manifest = image(&layout, "bees").1;
    let error = json!({"errors": [{"code": "UNKNOWN", "message": FORGED.repeat(200)}]}).to_string();
    registry.behaviour().blob_status = Some(StatusCode::BAD_REQUEST);
    registry.behaviour().errors = Some(error);
    let fault = pull(&store(&layout), &registry.tag("v1", &manifest)).await.unwrap_err();
    assert!(fault.contains("\\u{a}2026-01-01"), "{fault}");
    check(&fault);
    *registry.behaviour() = crate::registry::Behaviour::default();
    let manifest = layout.manifest_for(&[], &FORGED.repeat(10_000));
    let fault = pull(&store(&layout), &registry.tag("v2", &manifest)).await.unwrap_err();
    assert!(fault.contains("the image is for linux/x\\u{a}2026-01-01"), "{fault}");
    check(&fault);
    // A document that quotes itself in the parser's error.
    let index = json!({"schemaVersion": FORGED.repeat(50_000), "manifests": []});
    let fault = pull(&store(&layout), &registry.tag("v3", &layout.json(OCI_INDEX, &index))).await.unwrap_err();
    assert!(fault.contains("\\n2026-01-01") || fault.contains("\\u{a}2026-01-01"), "{fault}");
    check(&fault);
}

#[tokio::test]
async fn image_that_is_evicted_during_its_preparation_is_pulled_again() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (layer, manifest) = image(&layout, "bees");
    let reference = registry.tag("v1", &manifest);
    let store = Arc::new(store(&layout));
    assert_eq!(pull(&store, &reference).await.unwrap(), "bees");
    // The image is merged, so a preparation needs only the configuration, which is missing.
    let blobs = layout.cache().join("blobs/sha256");
    let manifest_blob = manifest["digest"].as_str().unwrap().replace("sha256:", "");
    for entry in fs::read_dir(&blobs).unwrap().map(Result::unwrap) {
        if ![".lock", &manifest_blob].contains(&entry.file_name().to_str().unwrap()) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    registry.shut_gate().await;
    let asked = registry.requests().len();
    let preparing = tokio::spawn({
        let (store, reference) = (Arc::clone(&store), reference.clone());
        async move { pull(&store, &reference).await }
    });
    let is_asked = || registry.requests()[asked..].iter().any(|request| request.path.contains("/blobs/"));
    until("the configuration is requested", is_asked).await;
    assert_eq!(store.prune(&EvictionRules::EVERYTHING).images, 1);
    registry.open_gate();
    assert_eq!(preparing.await.unwrap().unwrap(), "bees");
    assert_eq!(registry.times(&layer), 2);
}

#[tokio::test]
async fn failed_pull_keeps_layers_within_the_limits_of_the_cache_only() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let layer = |name: &str| layout.blob(PLAIN, &Layer::new().file(name, &name.repeat(1 << 20)).tar());
    let (first, second) = (layer("a"), layer("b"));
    let known = registry.tag("v0", &layout.manifest(std::slice::from_ref(&first)));
    drop(store(&layout).prepare(&known.parse().unwrap()).await.unwrap());
    let reference = registry.tag("v1", &layout.manifest(&[first.clone(), second.clone()]));
    // Too long, so the download is not tried again.
    registry.behaviour().instead.insert(second["digest"].as_str().unwrap().to_owned(), vec![7; 3 << 20]);
    let blob = layout.cache().join("blobs").join(first["digest"].as_str().unwrap().replace(':', "/"));
    for (bytes_max, kept) in [(16 << 20, true), (1 << 19, false)] {
        let rules = EvictionRules { bytes_max: Some(bytes_max), ..EvictionRules::default() };
        let settings = ImageStoreSettings { cache_dir: layout.cache(), rules, ..ImageStoreSettings::default() };
        assert!(pull(&ImageStore::with_settings(settings).unwrap(), &reference).await.is_err());
        assert_eq!(blob.exists(), kept, "{bytes_max}");
        // The download of the configuration may still be about to end.
        until("no draft is left", || drafts(&layout.cache()).is_empty()).await;
    }
}
