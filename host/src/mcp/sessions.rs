// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sessions with owners, and with a limit on the number of sessions. Only older protocol versions have sessions.
//!
//! This table wraps rmcp's session table, which has no limit and no owners. Only the principal that opened a session
//! can use it; for others the id does not exist. When the table is full, a new session evicts a session that has been
//! idle for a minute. If no session has been idle that long, the new session is refused. Whenever a session opens, all
//! sessions that have been idle for an hour are closed.

mod request_ids;

use std::{
    cell::Cell,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::session::{
        ServerSseMessage, SessionId, SessionManager,
        local::{LocalSessionManager, LocalSessionManagerError, SessionTransport},
    },
};
use tokio::time::Instant;
use waggle_shared::mutex::lock;

use self::request_ids::{RequestIds, cancelled_id, ids_of};
use super::memory::{OrphanedResults, RequestMemory};
use crate::domain::principal::Principal;

/// Time without a request after which a session without open answers may be evicted. A client that returns later opens
/// another session.
const EVICTABLE_AFTER: Duration = Duration::from_secs(60);

/// Time without a request after which a session without open answers expires. An expired session is closed when the
/// next session opens, even if the table is not full.
const EXPIRES_AFTER: Duration = Duration::from_secs(60 * 60);

tokio::task_local! {
    static REQUEST: CurrentRequest;
}

/// The HTTP request that the current task answers.
struct CurrentRequest {
    principal: Principal,
    memory: RequestMemory,
    /// Set if the session table refuses the request.
    refusal: Cell<Option<SessionRefusal>>,
}

/// Runs `answer` as the answer to a request of `principal`. `memory` is the reserved memory of that request.
///
/// # Errors
/// [`SessionRefusal`] if the session table refused the request.
pub async fn on_behalf<F: Future>(
    principal: Principal,
    memory: RequestMemory,
    answer: F,
) -> Result<F::Output, SessionRefusal> {
    let answer = async {
        let output = answer.await;
        (output, REQUEST.with(|request| request.refusal.get()))
    };
    match REQUEST.scope(CurrentRequest { principal, memory, refusal: Cell::new(None) }, answer).await {
        (_, Some(refusal)) => Err(refusal),
        (output, None) => Ok(output),
    }
}

/// The reason why the session table refuses a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SessionRefusal {
    /// The table is full, and none of its sessions may be evicted.
    #[error("too many sessions are open; close one, or retry in a minute")]
    Full,
    /// Another open request of the session has the same request id or progress token. Answers and reports are routed by
    /// request id and token, so two open requests must not share one.
    #[error("the request id or progress token is in use by another open request of this session; use a new one")]
    Repeated,
}

/// A session manager with a limit and with owners.
#[derive(Debug)]
pub struct Sessions {
    inner: LocalSessionManager,
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    /// Locked while a session opens, from the check of the limit until the session is in the table.
    opening: tokio::sync::Mutex<()>,
    sessions_max: usize,
}

#[derive(Debug)]
struct Session {
    owner: Principal,
    last_request: Instant,
    /// Each open answer holds a strong reference.
    open: Weak<()>,
    ids: RequestIds,
    orphaned: OrphanedResults,
}

impl Session {
    fn is_idle_for(&self, time: Duration) -> bool {
        self.open.strong_count() == 0 && self.last_request.elapsed() >= time
    }
}

impl Sessions {
    pub(super) fn new(inner: LocalSessionManager, sessions_max: usize) -> Self {
        Self { inner, table: Arc::default(), opening: tokio::sync::Mutex::default(), sessions_max }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        lock(&self.table)
    }

    /// Returns the session to evict before another session opens, or `None` if the table is not full.
    fn session_to_evict(&self) -> Result<Option<SessionId>, SessionFault> {
        let table = self.table();
        if table.len() < self.sessions_max {
            return Ok(None);
        }
        let evictable = table.iter().filter(|(_, session)| session.is_idle_for(EVICTABLE_AFTER));
        match evictable.min_by_key(|(_, session)| session.last_request) {
            Some((id, _)) => Ok(Some(Arc::clone(id))),
            None => Err(refused(SessionRefusal::Full)),
        }
    }

    /// Whether the current request may use a session. rmcp's own tasks run outside of any request and may use all
    /// sessions.
    fn is_owned(&self, id: &SessionId) -> bool {
        let table = self.table();
        let Some(session) = table.get(id) else { return false };
        REQUEST.try_with(|request| request.principal == session.owner).unwrap_or(true)
    }

    fn expired(&self) -> Vec<SessionId> {
        let table = self.table();
        let expired = table.iter().filter(|(_, session)| {
            session.is_idle_for(EXPIRES_AFTER) || (session.is_idle_for(Duration::ZERO) && session.ids.exhausted())
        });
        expired.map(|(id, _)| Arc::clone(id)).collect()
    }

    /// Records a request of a session. The session counts as in use until the returned token is dropped.
    fn touch(&self, id: &SessionId) -> Option<Arc<()>> {
        let mut table = self.table();
        let session = table.get_mut(id)?;
        session.last_request = Instant::now();
        let open = session.open.upgrade().unwrap_or_default();
        session.open = Arc::downgrade(&open);
        Some(open)
    }

    fn open_stream<S>(&self, id: &SessionId, stream: S) -> OpenStream<S> {
        OpenStream { stream: Box::pin(stream), request: None, _resumed: Vec::new(), _open: self.touch(id) }
    }

    /// Registers the id and the progress token of a request.
    fn register(&self, id: &SessionId, message: &ClientJsonRpcMessage) -> Result<RegisteredRequest, SessionFault> {
        let ids = ids_of(message);
        let memory = REQUEST.try_with(|request| request.memory.clone()).unwrap_or_default();
        if let Some(session) = self.table().get_mut(id) {
            session.ids.register(&ids, &memory).map_err(refused)?;
        }
        Ok(RegisteredRequest { table: Arc::clone(&self.table), session: Arc::clone(id), ids, memory, ended: false })
    }

    /// Charges the result of a cancelled request to the session, because rmcp keeps a result that arrives after the
    /// cancellation until the session ends.
    fn orphan_result(&self, id: &SessionId, message: &ClientJsonRpcMessage) {
        let Some(request) = cancelled_id(message) else { return };
        let table = self.table();
        let Some(session) = table.get(id) else { return };
        if let Some(memory) = session.ids.memory_of(request) {
            memory.move_results_to(&session.orphaned);
        }
    }

    async fn close(&self, id: &SessionId) -> Result<(), SessionFault> {
        self.table().remove(id);
        Ok(self.inner.close_session(id).await?)
    }
}

/// Records the refusal for [`on_behalf`], because rmcp gives the same answer to every fault.
fn refused(refusal: SessionRefusal) -> SessionFault {
    let _ = REQUEST.try_with(|request| request.refusal.set(Some(refusal)));
    SessionFault::Refused(refusal)
}

/// A request with registered ids. Dropping the request releases the ids, if the answer was read to its end.
struct RegisteredRequest {
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    session: SessionId,
    ids: Vec<u64>,
    memory: RequestMemory,
    ended: bool,
}

impl Drop for RegisteredRequest {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(session) = table.get_mut(&self.session) {
            session.ids.release(&self.ids, self.ended, &self.memory);
        }
    }
}

/// The stream of an open answer. A session with an open answer cannot be evicted.
struct OpenStream<S> {
    stream: Pin<Box<S>>,
    request: Option<RegisteredRequest>,
    /// The memory of all abandoned answers of the session, because this stream may resume any of them.
    _resumed: Vec<RequestMemory>,
    _open: Option<Arc<()>>,
}

impl<S: Stream> Stream for OpenStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.stream.as_mut().poll_next(context);
        if let (Poll::Ready(None), Some(request)) = (&polled, &mut self.request) {
            request.ended = true;
        }
        polled
    }
}

impl SessionManager for Sessions {
    type Error = SessionFault;
    type Transport = SessionTransport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionFault> {
        let _opening = self.opening.lock().await;
        for expired in self.expired() {
            self.close(&expired).await?;
        }
        if let Some(evicted) = self.session_to_evict()? {
            self.close(&evicted).await?;
        }
        let (id, transport) = self.inner.create_session().await?;
        let owner = REQUEST.try_with(|request| request.principal.clone()).unwrap_or_else(|_| Principal::anonymous());
        let (ids, orphaned) = (RequestIds::default(), OrphanedResults::default());
        let session = Session { owner, last_request: Instant::now(), open: Weak::new(), ids, orphaned };
        self.table().insert(Arc::clone(&id), session);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionFault> {
        Ok(self.inner.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionFault> {
        // A session with too many abandoned answers accepts no more requests.
        let exhausted = self.table().get(id).is_some_and(|session| session.ids.exhausted());
        Ok(self.is_owned(id) && !exhausted && self.inner.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionFault> {
        if self.is_owned(id) { self.close(id).await } else { Ok(()) }
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        let request = self.register(id, &message)?;
        let mut stream = self.open_stream(id, self.inner.create_stream(id, message).await?);
        stream.request = Some(request);
        Ok(stream)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), SessionFault> {
        self.touch(id);
        self.orphan_result(id, &message);
        Ok(self.inner.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        Ok(self.open_stream(id, self.inner.create_standalone_stream(id).await?))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        let abandoned = self.table().get(id).map(|session| session.ids.abandoned()).unwrap_or_default();
        let mut stream = self.open_stream(id, self.inner.resume(id, last_event_id).await?);
        stream._resumed = abandoned;
        Ok(stream)
    }
}

/// A failed operation on a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// This table refused the request.
    #[error(transparent)]
    Refused(#[from] SessionRefusal),
    /// rmcp's session manager failed.
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
}

#[cfg(test)]
mod tests;
