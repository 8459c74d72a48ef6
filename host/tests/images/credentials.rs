// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Where passwords and tokens go, and where they do not.

use std::fs;

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use waggle::images::{
    cache::{ImageStore, ImageStoreSettings},
    registry::RegistrySettings,
};

use crate::{
    layout::{Layer, Layout},
    pulling::{image, pull, store},
    registry::{Manners, Registry},
};

/// A store that knows a password for a registry.
fn knowing(layout: &Layout, registry: &str) -> ImageStore {
    let file = layout.cache().with_file_name("auth.json");
    let auth = STANDARD.encode("bee:honey");
    fs::write(&file, json!({"auths": {registry: {"auth": auth}}}).to_string()).unwrap();
    let registries = RegistrySettings { auth_files: vec![file], ..RegistrySettings::default() };
    let settings = ImageStoreSettings { cache_dir: layout.cache(), registries, ..ImageStoreSettings::default() };
    ImageStore::with_settings(settings).unwrap()
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("bee:honey"))
}

#[tokio::test]
async fn a_password_opens_a_registry_and_is_not_shown_to_one_that_does_not_ask() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.manners().challenge = Some(("Basic realm=\"hive\"".to_owned(), basic()));
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    let advice = format!(
        "no credentials for it were found; check the image's name, or log in with `docker login {}`",
        registry.host
    );
    assert!(fault.contains(&advice), "{fault}");
    let knowing = knowing(&layout, &registry.host);
    assert_eq!(pull(&knowing, &reference).await.unwrap(), "x");

    let open = Layout::new();
    let other = Registry::start(&open).await;
    let knowing = self::knowing(&open, &other.host);
    assert_eq!(pull(&knowing, &other.tag("v1", &image(&open, "y").1)).await.unwrap(), "y");
    assert!(other.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", other.asked());
}

#[tokio::test]
async fn a_wrong_password_is_told() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.manners().challenge = Some(("Basic realm=\"hive\"".to_owned(), "Basic other".to_owned()));
    let fault = pull(&knowing(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("the credentials that were found for it do not do"), "{fault}");
    assert!(!fault.contains("honey"), "{fault}");
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_used_in_its_place() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"hive\"", registry.host);
    registry.manners().challenge = Some((challenge, "Bearer wax".to_owned()));
    registry.manners().other = Some(r#"{"token":"wax"}"#.to_owned());
    assert_eq!(pull(&knowing(&layout, &registry.host), &reference).await.unwrap(), "x");
    for asked in registry.asked() {
        match asked.authorization.as_deref() {
            Some("Bearer wax") => assert!(asked.path.starts_with("/v2/bees/hive/"), "{asked:?}"),
            Some(other) => assert_eq!((asked.path.as_str(), other), ("/token", &*basic())),
            None => assert_eq!(asked.path, "/v2/"),
        }
    }
}

#[tokio::test]
async fn a_password_does_not_go_to_a_realm_on_another_host() {
    let layout = Layout::new();
    let (registry, stranger) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let reference = registry.tag("v1", &image(&layout, "x").1);
    let realm = format!("http://{}/token", stranger.host.replace("127.0.0.1", "localhost"));
    registry.manners().challenge = Some((format!("Bearer realm=\"{realm}\""), "Bearer wax".to_owned()));
    let fault = pull(&knowing(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("wants its credentials sent to") && fault.contains("they were not sent"), "{fault}");
    assert_eq!(stranger.asked(), []);
}

#[tokio::test]
async fn credentials_stay_behind_where_a_registry_sends_its_readers_on() {
    let layout = Layout::new();
    let (registry, elsewhere) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let manifest = image(&layout, "x").1;
    let reference = registry.tag("v1", &manifest);
    elsewhere.tag("v1", &manifest);
    let address = Some(format!("http://{}", elsewhere.host));
    registry.manners().challenge = Some(("Basic realm=\"hive\"".to_owned(), basic()));
    registry.manners().blobs_at = address.clone();
    registry.manners().manifests_at = address;
    assert_eq!(pull(&knowing(&layout, &registry.host), &reference).await.unwrap(), "x");
    let paths: Vec<_> = elsewhere.asked().into_iter().map(|asked| (asked.path, asked.authorization)).collect();
    assert!(
        paths.iter().any(|(path, _)| path.contains("/blobs/"))
            && paths.iter().any(|(path, _)| path.contains("/manifests/"))
    );
    assert!(paths.iter().all(|(_, authorization)| authorization.is_none()), "{paths:?}");
}

#[tokio::test]
async fn a_document_that_is_elsewhere_without_tls_is_not_fetched() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.manners().manifests_at = Some("http://hive.invalid".to_owned());
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("it redirects to plain HTTP"), "{fault}");
}

#[tokio::test]
async fn what_another_host_says_is_not_told_nor_where_it_was_asked() {
    let layout = Layout::new();
    let (registry, elsewhere) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.manners().blobs_at = Some(format!("http://{}/signature", elsewhere.host));
    elsewhere.manners().blob_status = Some(StatusCode::GONE);
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("410 Gone"), "{fault}");
    assert!(!fault.contains("honey") && !fault.contains("signature"), "{fault}");
}

/// `0.0.0.0` leads to this machine, and is no loopback address.
#[tokio::test]
async fn a_registry_elsewhere_leads_nobody_to_this_machine() {
    let layout = Layout::new();
    let (registry, stranger) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let manifest = image(&layout, "x").1;
    let reference = registry.tag("v1", &manifest).replace("127.0.0.1", "0.0.0.0");
    stranger.tag("v1", &manifest);
    let plain = registry.host.replace("127.0.0.1", "0.0.0.0").parse().unwrap();
    let registries = RegistrySettings { plain, ..RegistrySettings::default() };
    let settings = ImageStoreSettings { cache_dir: layout.cache(), registries, ..ImageStoreSettings::default() };
    let store = ImageStore::with_settings(settings).unwrap();
    let address = Some(format!("http://{}", stranger.host));
    registry.manners().manifests_at = address.clone();
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("it redirects to plain HTTP, or to an address of this machine"), "{fault}");
    *registry.manners() = Manners { blobs_at: address, ..Manners::default() };
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("it redirects to plain HTTP, or to an address of this machine"), "{fault}");
    let challenge = format!("Bearer realm=\"http://{}/token\"", stranger.host);
    *registry.manners() = Manners { challenge: Some((challenge, "Bearer wax".to_owned())), ..Manners::default() };
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("which is another site or not safe"), "{fault}");
    assert_eq!(stranger.asked(), []);
    *registry.manners() = Manners::default();
    assert_eq!(pull(&store, &reference).await.unwrap(), "x");
}

#[tokio::test]
async fn a_layers_own_addresses_are_never_asked() {
    let layout = Layout::new();
    let (registry, stranger) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let mut layer = layout.blob(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        &crate::layout::gzip(&Layer::new().file("a", "x").tar()),
    );
    let digest = layer["digest"].as_str().unwrap().to_owned();
    layer["urls"] = json!([format!("http://{}/v2/bees/hive/blobs/{digest}", stranger.host)]);
    let reference = registry.tag("v1", &layout.manifest(&[layer]));
    let path = layout.path().join("blobs").join(digest.replace(':', "/"));
    fs::rename(&path, path.with_extension("away")).unwrap();
    let fault = pull(&knowing(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("said no"), "{fault}");
    assert_eq!(stranger.asked(), []);
}
