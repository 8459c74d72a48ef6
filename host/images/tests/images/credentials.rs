// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the hosts that receive passwords and tokens.

use std::fs;

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use waggle_images::{
    cache::{ImageStore, ImageStoreSettings},
    registry::RegistrySettings,
};

use crate::{
    layout::{Layer, Layout},
    pulling::{image, pull, store},
    registry::{Behaviour, Registry},
};

/// Creates a store with a password for a registry.
fn store_with_password(layout: &Layout, registry: &str) -> ImageStore {
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
async fn password_is_sent_only_to_a_registry_that_requires_it() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.behaviour().challenge = Some(("Basic realm=\"hive\"".to_owned(), basic()));
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    let advice = format!(
        "no credentials for the registry were found; check the image's name, or log in with `docker login {}`",
        registry.host
    );
    assert!(fault.contains(&advice), "{fault}");
    let store = store_with_password(&layout, &registry.host);
    assert_eq!(pull(&store, &reference).await.unwrap(), "x");

    let open = Layout::new();
    let other = Registry::start(&open).await;
    let store = store_with_password(&open, &other.host);
    assert_eq!(pull(&store, &other.tag("v1", &image(&open, "y").1)).await.unwrap(), "y");
    assert!(other.requests().iter().all(|request| request.authorization.is_none()), "{:?}", other.requests());
}

#[tokio::test]
async fn wrong_password_is_reported() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.behaviour().challenge = Some(("Basic realm=\"hive\"".to_owned(), "Basic other".to_owned()));
    let fault = pull(&store_with_password(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("the credentials found for the registry were rejected"), "{fault}");
    assert!(!fault.contains("honey"), "{fault}");
}

#[tokio::test]
async fn password_is_exchanged_for_a_token() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"hive\"", registry.host);
    registry.behaviour().challenge = Some((challenge, "Bearer wax".to_owned()));
    registry.behaviour().other = Some(r#"{"token":"wax"}"#.to_owned());
    assert_eq!(pull(&store_with_password(&layout, &registry.host), &reference).await.unwrap(), "x");
    for request in registry.requests() {
        match request.authorization.as_deref() {
            Some("Bearer wax") => assert!(request.path.starts_with("/v2/bees/hive/"), "{request:?}"),
            Some(other) => assert_eq!((request.path.as_str(), other), ("/token", &*basic())),
            None => assert_eq!(request.path, "/v2/"),
        }
    }
}

#[tokio::test]
async fn password_is_not_sent_to_a_realm_on_another_site() {
    let layout = Layout::new();
    let (registry, stranger) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let reference = registry.tag("v1", &image(&layout, "x").1);
    let realm = format!("http://{}/token", stranger.host.replace("127.0.0.1", "localhost"));
    registry.behaviour().challenge = Some((format!("Bearer realm=\"{realm}\""), "Bearer wax".to_owned()));
    let fault = pull(&store_with_password(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("uses the token service") && fault.contains("no credentials were sent there"), "{fault}");
    assert_eq!(stranger.requests(), []);
}

#[tokio::test]
async fn credentials_are_removed_on_redirects() {
    let layout = Layout::new();
    let (registry, elsewhere) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let manifest = image(&layout, "x").1;
    let reference = registry.tag("v1", &manifest);
    elsewhere.tag("v1", &manifest);
    let address = Some(format!("http://{}", elsewhere.host));
    registry.behaviour().challenge = Some(("Basic realm=\"hive\"".to_owned(), basic()));
    registry.behaviour().blobs_at = address.clone();
    registry.behaviour().manifests_at = address;
    assert_eq!(pull(&store_with_password(&layout, &registry.host), &reference).await.unwrap(), "x");
    let paths: Vec<_> = elsewhere.requests().into_iter().map(|request| (request.path, request.authorization)).collect();
    assert!(
        paths.iter().any(|(path, _)| path.contains("/blobs/"))
            && paths.iter().any(|(path, _)| path.contains("/manifests/"))
    );
    assert!(paths.iter().all(|(_, authorization)| authorization.is_none()), "{paths:?}");
}

#[tokio::test]
async fn rejects_redirect_to_plain_http() {
    let layout = Layout::new();
    let registry = Registry::start(&layout).await;
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.behaviour().manifests_at = Some("http://hive.invalid".to_owned());
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("redirect to plain HTTP"), "{fault}");
}

#[tokio::test]
async fn errors_do_not_quote_redirect_targets() {
    let layout = Layout::new();
    let (registry, elsewhere) = (Registry::start(&layout).await, Registry::start(&layout).await);
    let reference = registry.tag("v1", &image(&layout, "x").1);
    registry.behaviour().blobs_at = Some(format!("http://{}/signature", elsewhere.host));
    elsewhere.behaviour().blob_status = Some(StatusCode::GONE);
    let fault = pull(&store(&layout), &reference).await.unwrap_err();
    assert!(fault.contains("410 Gone"), "{fault}");
    assert!(!fault.contains("honey") && !fault.contains("signature"), "{fault}");
}

/// `0.0.0.0` reaches this machine, but is not a loopback address.
#[tokio::test]
async fn rejects_redirects_to_this_machine() {
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
    registry.behaviour().manifests_at = address.clone();
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("redirect to plain HTTP, or to a loopback or link-local address"), "{fault}");
    *registry.behaviour() = Behaviour { blobs_at: address, ..Behaviour::default() };
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("redirect to plain HTTP, or to a loopback or link-local address"), "{fault}");
    let challenge = format!("Bearer realm=\"http://{}/token\"", stranger.host);
    *registry.behaviour() = Behaviour { challenge: Some((challenge, "Bearer wax".to_owned())), ..Behaviour::default() };
    let fault = pull(&store, &reference).await.unwrap_err();
    assert!(fault.contains("which is on another site or not encrypted"), "{fault}");
    assert_eq!(stranger.requests(), []);
    *registry.behaviour() = Behaviour::default();
    assert_eq!(pull(&store, &reference).await.unwrap(), "x");
}

#[tokio::test]
async fn urls_of_layers_are_never_requested() {
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
    let fault = pull(&store_with_password(&layout, &registry.host), &reference).await.unwrap_err();
    assert!(fault.contains("failed to send a blob: 404 Not Found"), "{fault}");
    assert_eq!(stranger.requests(), []);
}
