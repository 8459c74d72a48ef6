// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A registry on this machine that serves a layout's blobs, remembers what it was asked, and misbehaves when told to.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::layout::{Layout, OCI_MANIFEST};

/// How long a stuck test waits before it says so.
const STUCK: Duration = Duration::from_secs(30);

/// Configurations come whole: which of an image's blobs is asked for first, nobody knows.
const CUT_BYTES_MIN: usize = 1 << 20;

/// How a registry behaves.
#[derive(Default)]
pub(crate) struct Manners {
    /// What it answers to who shows nothing: a `WWW-Authenticate` header, and the `Authorization` that satisfies it.
    pub(crate) challenge: Option<(String, String)>,
    /// Answers with large blobs that break off after so many bytes, each once.
    pub(crate) cuts: Vec<usize>,
    pub(crate) ignores_ranges: bool,
    /// Blobs (or manifests) are elsewhere: what a path is put behind.
    pub(crate) blobs_at: Option<String>,
    pub(crate) manifests_at: Option<String>,
    /// What it serves in place of its blobs.
    pub(crate) instead: HashMap<String, Vec<u8>>,
    /// A manifest without an end.
    pub(crate) endless_manifests: bool,
    /// Blobs are answered with this status.
    pub(crate) blob_status: Option<StatusCode>,
    /// And what that says has no end.
    pub(crate) endless_refusals: bool,
    /// An answer for paths that are neither blob nor manifest, a token's place.
    pub(crate) other: Option<String>,
}

/// A request as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

struct Shared {
    blobs: PathBuf,
    tags: Mutex<HashMap<String, Value>>,
    manners: Mutex<Manners>,
    asked: Mutex<Vec<Asked>>,
    /// A permit lets one blob's answer out.
    gate: Semaphore,
}

pub(crate) struct Registry {
    shared: Arc<Shared>,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    /// Serves the blobs of a layout.
    pub(crate) async fn start(layout: &Layout) -> Self {
        let shared = Arc::new(Shared {
            blobs: layout.path().join("blobs"),
            tags: Mutex::default(),
            manners: Mutex::default(),
            asked: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, host, task }
    }

    /// Gives a manifest or an index a tag, and returns the reference.
    pub(crate) fn tag(&self, tag: &str, descriptor: &Value) -> String {
        self.shared.tags.lock().unwrap().insert(tag.to_owned(), descriptor.clone());
        format!("{}/bees/hive:{tag}", self.host)
    }

    pub(crate) fn manners(&self) -> MutexGuard<'_, Manners> {
        self.shared.manners.lock().unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How often a blob was asked for.
    pub(crate) fn times(&self, blob: &Value) -> usize {
        let digest = blob["digest"].as_str().unwrap();
        self.asked().iter().filter(|asked| asked.path.ends_with(&format!("/blobs/{digest}"))).count()
    }

    /// Blobs wait from now on.
    pub(crate) async fn shut_gate(&self) {
        self.shared
            .gate
            .acquire_many(u32::try_from(Semaphore::MAX_PERMITS.min(1 << 20)).unwrap())
            .await
            .unwrap()
            .forget();
        self.shared.gate.forget_permits(usize::MAX);
    }

    pub(crate) fn open_gate(&self) {
        self.shared.gate.add_permits(1 << 20);
    }

    /// Waits until a blob has been asked for.
    pub(crate) async fn blob_is_asked_for(&self) {
        let is_blob = |asked: &Asked| asked.path.contains("/blobs/");
        until("a blob is asked for", || self.asked().iter().any(is_blob)).await;
    }
}

/// Waits until something is so, which `what` says.
pub(crate) async fn until(what: &str, check: impl Fn() -> bool) {
    let reached = async {
        while !check() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STUCK, reached).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let asked =
        Asked { path: uri.path().to_owned(), authorization: text(header::AUTHORIZATION), range: text(header::RANGE) };
    shared.asked.lock().unwrap().push(asked.clone());
    let is_blob = asked.path.contains("/blobs/");
    if is_blob {
        shared.gate.acquire().await.unwrap().forget();
        shared.gate.add_permits(1);
    }
    let mut manners = shared.manners.lock().unwrap();
    if let Some(other) = &manners.other
        && !asked.path.starts_with("/v2/")
    {
        return other.clone().into_response();
    }
    if let Some((challenge, wanted)) = &manners.challenge
        && asked.authorization.as_ref() != Some(wanted)
    {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response();
    }
    let elsewhere = if is_blob { &manners.blobs_at } else { &manners.manifests_at };
    if let Some(elsewhere) = elsewhere
        && asked.path.len() > "/v2/".len()
    {
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{elsewhere}{}", asked.path))])
            .into_response();
    }
    match asked.path.rsplit_once('/') {
        Some((_, digest)) if is_blob => blob(&shared, &mut manners, digest, asked.range.as_deref()),
        Some((_, name)) if asked.path.contains("/manifests/") => manifest(&shared, &manners, name),
        _ => StatusCode::OK.into_response(),
    }
}

fn endless() -> Body {
    Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 16]))))
}

fn manifest(shared: &Shared, manners: &Manners, name: &str) -> Response {
    if manners.endless_manifests {
        return endless().into_response();
    }
    let tags = shared.tags.lock().unwrap();
    let digest = tags.get(name).map_or(name, |descriptor| descriptor["digest"].as_str().unwrap());
    let named = tags.values().find(|descriptor| descriptor["digest"] == digest);
    let media_type = named.map(|descriptor| descriptor["mediaType"].as_str().unwrap().to_owned());
    let Ok(content) = fs::read(shared.blobs.join(digest.replace(':', "/"))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let media_type = media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
    ([(header::CONTENT_TYPE, media_type)], content).into_response()
}

fn blob(shared: &Shared, manners: &mut Manners, digest: &str, range: Option<&str>) -> Response {
    if let Some(status) = manners.blob_status {
        return (status, if manners.endless_refusals { endless() } else { Body::from("no honey") }).into_response();
    }
    let stored = fs::read(shared.blobs.join(digest.replace(':', "/")));
    let Some(content) = manners.instead.get(digest).cloned().or_else(|| stored.ok()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let from = range.filter(|_| !manners.ignores_ranges).map(|range| {
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
    });
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = content[from.unwrap_or(0).min(content.len())..].to_vec();
    if manners.cuts.is_empty() || content.len() < CUT_BYTES_MIN {
        return (status, rest).into_response();
    }
    // Announced whole, and broken off.
    let cut = manners.cuts.remove(0).min(rest.len());
    let length = rest.len().to_string();
    let pieces = [Ok(Bytes::from(rest[..cut].to_vec())), Err(std::io::Error::other("cut"))];
    (status, [(header::CONTENT_LENGTH, length)], Body::from_stream(stream::iter(pieces))).into_response()
}
