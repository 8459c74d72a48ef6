// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Images that only clients have named: on a shelf of their own, and pulled without the operator's rights.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use waggle_images::{
    cache::{EvictionRules, ImageStore, ImageStoreSettings, Resolve},
    reference::{ImageRef, PullRights},
};
use waggle_shared::causes::chain;

use crate::{
    layout::{Layer, Layout, MERGED},
    registry::Registry,
};

/// The media type of a layer that is not compressed.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

fn store(layout: &Layout, rules: EvictionRules) -> ImageStore {
    let settings = ImageStoreSettings { cache_dir: layout.cache(), rules, ..ImageStoreSettings::default() };
    ImageStore::with_settings(settings).unwrap()
}

/// Pushes an image with a layer of half a MiB.
fn push(registry: &Registry, layout: &Layout, name: &str) -> ImageRef {
    let layer = layout.blob(PLAIN, &Layer::new().file(name, &name.repeat(1 << 19)).tar());
    registry.tag(name, &layout.manifest(&[layer])).parse().unwrap()
}

#[tokio::test]
async fn clients_find_nothing_that_the_operator_has_pulled() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let (image, store) = (push(&registry, &layout, "a"), store(&layout, EvictionRules::default()));
    store.prepare(&image).await.unwrap();
    let before = registry.requests().len();
    let refused = |image: ImageRef| {
        let store = &store;
        async move {
            let found = store.prepare_as(PullRights::Public, &image, Resolve::IfUnknown, &|_| {}).await;
            chain(&*found.unwrap_err())
        }
    };
    let text = refused(image).await;
    assert!(text.contains("127.0.0.1") && text.contains("has no public address"), "{text}");
    assert_eq!(registry.requests().len(), before);
    layout.index(&[layout.manifest(&[])]);
    let text = refused(format!("oci:{}", layout.path().display()).parse().unwrap()).await;
    assert!(text.contains("is not in a registry"), "{text}");
}

#[tokio::test]
async fn clients_images_never_evict_those_of_the_operator() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let [own, first, second] = ["a", "b", "c"].map(|name| push(&registry, &layout, name));
    store(&layout, EvictionRules::default()).prepare(&own).await.unwrap();
    // The shelf has the same files as a cache of its own.
    let shelf = ImageStore::open(layout.cache().join("clients")).unwrap();
    for image in [&first, &second] {
        shelf.prepare(image).await.unwrap();
    }
    let listed = || {
        let listed = store(&layout, EvictionRules::default()).list();
        listed
            .into_iter()
            .filter(|image| image.merged_bytes > 0)
            .map(|image| (image.references, image.of_clients))
            .collect::<Vec<_>>()
    };
    let is_listed = |image: &ImageRef, of_clients| (vec![image.to_string()], of_clients);
    assert_eq!(listed(), [is_listed(&own, false), is_listed(&first, true), is_listed(&second, true)]);
    // The operator's image is the oldest.
    for folder in ["blobs/sha256", "records", MERGED] {
        for entry in fs::read_dir(layout.cache().join(folder)).unwrap() {
            let old = SystemTime::now() - Duration::from_secs(3600);
            fs::File::open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }
    // Each image takes 1 MiB: half for its layer, and half for the merged file.
    let clients_bytes_max = Some((3 << 19) + (1 << 16));
    let _removed = store(&layout, EvictionRules { clients_bytes_max, ..EvictionRules::default() }).evict();
    assert_eq!(listed(), [is_listed(&own, false), is_listed(&first, true), is_listed(&second, true)]);
    let _removed = store(&layout, EvictionRules { bytes_max: Some(5 << 19), ..EvictionRules::default() }).evict();
    assert_eq!(listed().first(), Some(&is_listed(&own, false)));
    let _removed = store(&layout, EvictionRules { bytes_max: Some(3 << 19), ..EvictionRules::default() }).evict();
    assert_eq!(listed(), [is_listed(&own, false)]);
}

#[tokio::test]
async fn commands_of_the_operator_see_both_shelves() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let image = push(&registry, &layout, "a");
    ImageStore::open(layout.cache().join("clients")).unwrap().prepare(&image).await.unwrap();
    let (store, name) = (store(&layout, EvictionRules::default()), image.to_string());
    assert!(store.inspect(&name).unwrap().of_clients);
    assert_eq!(store.remove(&name).unwrap().images, 1);
    assert_eq!(store.list().len(), 0);
    for shelf in ["", "clients"] {
        ImageStore::open(layout.cache().join(shelf)).unwrap().prepare(&image).await.unwrap();
    }
    assert_eq!(store.list().len(), 2);
    let digest = store.inspect(&name).unwrap().digest;
    assert_eq!(store.inspect(&digest).unwrap().references.join(" "), name);
    assert_eq!(store.remove(&name).unwrap().images, 2);
    assert_eq!(store.prune(&EvictionRules::EVERYTHING).images, 0);
}
