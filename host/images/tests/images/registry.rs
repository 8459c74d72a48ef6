// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A test registry on this machine. The registry serves a layout's blobs, records requests, and can be configured to
//! misbehave.

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

/// Maximum time that a test waits for a condition.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Minimum size of a blob that is cut. Small blobs such as configurations are never cut, because the order of requests
/// varies.
const CUT_BYTES_MIN: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Behaviour {
    /// The `WWW-Authenticate` header of the challenge, and the `Authorization` header that the registry expects.
    pub(crate) challenge: Option<(String, String)>,
    /// Numbers of bytes after which responses with large blobs are interrupted, one number per response.
    pub(crate) cuts: Vec<usize>,
    pub(crate) ignores_ranges: bool,
    /// Redirects requests for blobs to the same path below this URL.
    pub(crate) blobs_at: Option<String>,
    pub(crate) manifests_at: Option<String>,
    /// Content to send instead of the blobs with these digests.
    pub(crate) instead: HashMap<String, Vec<u8>>,
    pub(crate) endless_manifests: bool,
    /// The status of responses to requests for blobs.
    pub(crate) blob_status: Option<StatusCode>,
    /// The body of a response with `blob_status`.
    pub(crate) errors: Option<String>,
    /// Makes the body of a response with `blob_status` endless.
    pub(crate) endless_errors: bool,
    /// The response for paths that are neither blobs nor manifests, for example for the path of a token service.
    pub(crate) other: Option<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

struct Shared {
    blobs: PathBuf,
    tags: Mutex<HashMap<String, Value>>,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
    /// Responses with blobs wait for a permit.
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
    pub(crate) async fn start(layout: &Layout) -> Self {
        let shared = Arc::new(Shared {
            blobs: layout.path().join("blobs"),
            tags: Mutex::default(),
            behaviour: Mutex::default(),
            requests: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(respond).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, host, task }
    }

    /// Tags a manifest or an index, and returns the reference.
    pub(crate) fn tag(&self, tag: &str, descriptor: &Value) -> String {
        self.shared.tags.lock().unwrap().insert(tag.to_owned(), descriptor.clone());
        format!("{}/bees/hive:{tag}", self.host)
    }

    pub(crate) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.behaviour.lock().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The number of requests for a blob.
    pub(crate) fn times(&self, blob: &Value) -> usize {
        let digest = blob["digest"].as_str().unwrap();
        self.requests().iter().filter(|request| request.path.ends_with(&format!("/blobs/{digest}"))).count()
    }

    /// Delays all responses with blobs until [`Self::open_gate`].
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

    /// Waits until a blob has been requested.
    pub(crate) async fn blob_is_requested(&self) {
        let is_blob = |request: &Request| request.path.contains("/blobs/");
        until("a blob is requested", || self.requests().iter().any(is_blob)).await;
    }
}

/// Waits until `check` returns true; `what` describes the condition.
pub(crate) async fn until(what: &str, check: impl Fn() -> bool) {
    let reached = async {
        while !check() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, reached).await.unwrap_or_else(|_| panic!("timeout before {what}"));
}

async fn respond(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request =
        Request { path: uri.path().to_owned(), authorization: text(header::AUTHORIZATION), range: text(header::RANGE) };
    shared.requests.lock().unwrap().push(request.clone());
    let is_blob = request.path.contains("/blobs/");
    if is_blob {
        shared.gate.acquire().await.unwrap().forget();
        shared.gate.add_permits(1);
    }
    let mut behaviour = shared.behaviour.lock().unwrap();
    if let Some(other) = &behaviour.other
        && !request.path.starts_with("/v2/")
    {
        return other.clone().into_response();
    }
    if let Some((challenge, wanted)) = &behaviour.challenge
        && request.authorization.as_ref() != Some(wanted)
    {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response();
    }
    let elsewhere = if is_blob { &behaviour.blobs_at } else { &behaviour.manifests_at };
    if let Some(elsewhere) = elsewhere
        && request.path.len() > "/v2/".len()
    {
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{elsewhere}{}", request.path))])
            .into_response();
    }
    match request.path.rsplit_once('/') {
        Some((_, digest)) if is_blob => blob(&shared, &mut behaviour, digest, request.range.as_deref()),
        Some((_, name)) if request.path.contains("/manifests/") => manifest(&shared, &behaviour, name),
        _ => StatusCode::OK.into_response(),
    }
}

fn endless() -> Body {
    Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 16]))))
}

fn manifest(shared: &Shared, behaviour: &Behaviour, name: &str) -> Response {
    if behaviour.endless_manifests {
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

fn blob(shared: &Shared, behaviour: &mut Behaviour, digest: &str, range: Option<&str>) -> Response {
    if let Some(status) = behaviour.blob_status {
        return (
            status,
            if behaviour.endless_errors {
                endless()
            } else {
                Body::from(behaviour.errors.clone().unwrap_or_else(|| "no honey".to_owned()))
            },
        )
            .into_response();
    }
    let stored = fs::read(shared.blobs.join(digest.replace(':', "/")));
    let Some(content) = behaviour.instead.get(digest).cloned().or_else(|| stored.ok()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let from = range.filter(|_| !behaviour.ignores_ranges).map(|range| {
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
    });
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = content[from.unwrap_or(0).min(content.len())..].to_vec();
    if behaviour.cuts.is_empty() || content.len() < CUT_BYTES_MIN {
        return (status, rest).into_response();
    }
    // The header has the full length, but the body is cut.
    let cut = behaviour.cuts.remove(0).min(rest.len());
    let length = rest.len().to_string();
    let pieces = [Ok(Bytes::from(rest[..cut].to_vec())), Err(std::io::Error::other("cut"))];
    (status, [(header::CONTENT_LENGTH, length)], Body::from_stream(stream::iter(pieces))).into_response()
}
