// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Sessions with owners, and with a limit on the number of sessions. Only older protocol versions have sessions.
//!
//! This table wraps rmcp's session table, which has no limit and no owners. Only the principal that opened a session
//! can use it; for others the id does not exist. When the table is full, a new session evicts a session that has been
//! idle for a minute. If no session has been idle that long, the new session is refused. The same holds for the
//! sessions of one principal, which may open only its share. Whenever a session opens, all sessions that have been idle
//! for an hour are closed.

mod answers;
mod request_ids;
mod transport;

use std::{
    cell::Cell,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest, ProtocolVersion, ServerJsonRpcMessage, ServerResult},
    transport::streamable_http_server::session::{
        ServerSseMessage, SessionId, SessionManager,
        local::{LocalSessionManager, LocalSessionManagerError},
    },
};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use waggle_shared::mutex::lock;

use self::{
    answers::{Answer, Answers, LogWriter, ReadingResponse},
    request_ids::{RequestIds, cancelled_id, ids_of},
    transport::OwnedTransport,
};
use super::memory::{OrphanedResults, RequestMemory};
use crate::{
    domain::{principal::Principal, shared_limit::SharedLimit},
    service::callers::Callers,
};

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
    /// The principal has its share of sessions, and none of them may be evicted.
    #[error("you have reached your own maximum of {share} open sessions; close one, or retry in a minute")]
    Share { share: usize },
    /// Another request of the session, whose answer can still be read, has the same request id or progress token. rmcp
    /// routes answers and reports by request id and token, so two such requests must not share one.
    #[error("the request id or progress token is in use by another open request of this session; use a new one")]
    Repeated,
}

/// A session manager with a limit and with owners.
#[derive(Debug)]
pub struct Sessions {
    inner: Arc<LocalSessionManager>,
    /// The tasks that keep answers. Dropping the table of sessions aborts them.
    tasks: Mutex<JoinSet<()>>,
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    /// Locked while a session opens, from the check of the limit until the session is in the table.
    opening: tokio::sync::Mutex<()>,
    limit: SharedLimit,
    callers: Callers,
}

#[derive(Debug)]
struct Session {
    owner: Principal,
    last_request: Instant,
    /// Each open answer holds a strong reference.
    open: Weak<()>,
    ids: RequestIds,
    answers: Answers,
    /// Whether the client understands events without a message, which are new in protocol version 2025-11-25.
    has_priming: bool,
    orphaned: OrphanedResults,
    /// Cancelled when the session's service has ended.
    ended: CancellationToken,
}

impl Session {
    fn is_idle_for(&self, time: Duration) -> bool {
        self.open.strong_count() == 0 && !self.answers.has_unread() && self.last_request.elapsed() >= time
    }

    /// Forgets an answer. Its request's ids can be used again.
    fn forget(&mut self, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.ids.release(&answer.ids);
        }
    }
}

impl Sessions {
    pub(super) fn new(inner: LocalSessionManager, limit: SharedLimit, callers: Callers) -> Self {
        Self {
            inner: Arc::new(inner),
            tasks: Mutex::default(),
            table: Arc::default(),
            opening: tokio::sync::Mutex::default(),
            limit,
            callers,
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        lock(&self.table)
    }

    /// Returns the session to evict before `owner` opens another one, or `None` if there is a place.
    fn session_to_evict(&self, owner: &Principal) -> Result<Option<SessionId>, SessionFault> {
        let share = self.limit.share(self.callers.count());
        let table = self.table();
        let own = table.values().filter(|session| session.owner == *owner).count();
        let has_share = share < self.limit.all && own >= share;
        if !has_share && table.len() < self.limit.all {
            return Ok(None);
        }
        let evictable = table
            .iter()
            .filter(|(_, session)| !has_share || session.owner == *owner)
            .filter(|(_, session)| session.is_idle_for(EVICTABLE_AFTER));
        match evictable.min_by_key(|(_, session)| session.last_request) {
            Some((id, _)) => Ok(Some(Arc::clone(id))),
            None if has_share => Err(refused(SessionRefusal::Share { share })),
            None => Err(refused(SessionRefusal::Full)),
        }
    }

    /// Whether the current request may use a session. Outside of a request, no session may be used.
    fn is_owned(&self, id: &SessionId) -> bool {
        let table = self.table();
        let Some(session) = table.get(id) else { return false };
        REQUEST.try_with(|request| request.principal == session.owner).unwrap_or(false)
    }

    /// Whether the current task may close a session: the owner's request, or rmcp's own task when the session's service
    /// has ended.
    fn may_close(&self, id: &SessionId) -> bool {
        let is_request = REQUEST.try_with(|_| ()).is_ok();
        let has_ended = || self.table().get(id).is_some_and(|session| session.ended.is_cancelled());
        self.is_owned(id) || (!is_request && has_ended())
    }

    fn expired(&self) -> Vec<SessionId> {
        let table = self.table();
        let expired = table.iter().filter(|(_, session)| session.is_idle_for(EXPIRES_AFTER));
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
        OpenStream { stream: Box::pin(stream), answer: None, _open: self.touch(id) }
    }

    /// Returns the events of an answer from this number on. Reading them to the end releases the request's ids.
    fn read(
        &self,
        id: &SessionId,
        answer: Answer,
        from: usize,
    ) -> OpenStream<impl Stream<Item = ServerSseMessage> + Send + Sync + use<>> {
        let response = answer.add_response();
        let mut stream = self.open_stream(id, answer.events(from, &response));
        stream.answer = Some(ReadAnswer { table: Arc::clone(&self.table), session: Arc::clone(id), answer, response });
        stream
    }

    /// Registers the id and the progress token of a request, and adds its answer.
    fn register(&self, id: &SessionId, message: &ClientJsonRpcMessage) -> Result<(Answer, LogWriter), SessionFault> {
        let ids = ids_of(message);
        let memory = REQUEST.try_with(|request| request.memory.clone()).map_err(|_| SessionFault::NoRequest)?;
        let mut table = self.table();
        let session = table.get_mut(id).ok_or_else(|| LocalSessionManagerError::SessionNotFound(Arc::clone(id)))?;
        session.ids.register(&ids, &memory).map_err(refused)?;
        Ok(session.answers.add(ids, memory, session.has_priming))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
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

/// Whether a request calls a tool. Other requests can be repeated.
fn is_call(message: &ClientJsonRpcMessage) -> bool {
    let ClientJsonRpcMessage::Request(request) = message else { return false };
    matches!(request.request, ClientRequest::CallToolRequest(_))
}

/// Records the refusal for [`on_behalf`], because rmcp gives the same answer to every fault.
fn refused(refusal: SessionRefusal) -> SessionFault {
    let _ = REQUEST.try_with(|request| request.refusal.set(Some(refusal)));
    SessionFault::Refused(refusal)
}

/// An answer in the table of sessions. Dropping it removes the answer.
struct KeptAnswer {
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    session: SessionId,
    log: LogWriter,
}

impl KeptAnswer {
    /// Copies an answer into its log, and waits until the answer has been read or its time is over.
    async fn keep(self, answer: impl Stream<Item = ServerSseMessage>, is_call: bool) {
        self.log.copy(answer).await;
        if !is_call {
            // A client that did not get this answer can repeat the request.
            return self.log.until_closed().await;
        }
        if let Some(session) = lock(&self.table).get_mut(&self.session) {
            let surplus = session.answers.end(self.log.number);
            session.forget(surplus);
        }
        self.log.until_read().await;
    }
}

impl Drop for KeptAnswer {
    fn drop(&mut self) {
        if let Some(session) = lock(&self.table).get_mut(&self.session) {
            let removed = session.answers.remove(self.log.number);
            session.forget(removed);
        }
    }
}

/// An answer that a response reads.
struct ReadAnswer {
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    session: SessionId,
    /// The answer with its memory, which stays reserved until the response has been written.
    answer: Answer,
    response: Arc<ReadingResponse>,
}

/// The stream of an open answer. A session with an open answer cannot be evicted.
struct OpenStream<S> {
    stream: Pin<Box<S>>,
    answer: Option<ReadAnswer>,
    _open: Option<Arc<()>>,
}

impl<S: Stream> Stream for OpenStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.stream.as_mut().poll_next(context);
        if let (Poll::Ready(None), Some(read)) = (&polled, &self.answer)
            && !read.response.is_displaced()
            && let Some(session) = lock(&read.table).get_mut(&read.session)
        {
            let ids = session.answers.read(read.answer.number);
            session.ids.release(&ids);
        }
        polled
    }
}

impl SessionManager for Sessions {
    type Error = SessionFault;
    type Transport = OwnedTransport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionFault> {
        let owner = REQUEST.try_with(|request| request.principal.clone()).map_err(|_| SessionFault::NoRequest)?;
        let _opening = self.opening.lock().await;
        for expired in self.expired() {
            self.close(&expired).await?;
        }
        if let Some(evicted) = self.session_to_evict(&owner)? {
            self.close(&evicted).await?;
        }
        let (id, transport) = self.inner.create_session().await?;
        let ended = CancellationToken::new();
        let transport = OwnedTransport::new(transport, ended.clone());
        let session = Session {
            owner,
            last_request: Instant::now(),
            open: Weak::new(),
            ids: RequestIds::default(),
            answers: Answers::default(),
            has_priming: false,
            orphaned: OrphanedResults::default(),
            ended,
        };
        self.table().insert(Arc::clone(&id), session);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionFault> {
        let answer = self.inner.initialize_session(id, message).await?;
        if let ServerJsonRpcMessage::Response(response) = &answer
            && let ServerResult::InitializeResult(result) = &response.result
            && let Some(session) = self.table().get_mut(id)
        {
            session.has_priming = result.protocol_version >= ProtocolVersion::V_2025_11_25;
        }
        Ok(answer)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionFault> {
        Ok(self.is_owned(id) && self.inner.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionFault> {
        if self.may_close(id) { self.close(id).await } else { Ok(()) }
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        let (answer, log) = self.register(id, &message)?;
        let kept = KeptAnswer { table: Arc::clone(&self.table), session: Arc::clone(id), log };
        let is_call = is_call(&message);
        let (inner, session, (sender, begun)) = (Arc::clone(&self.inner), Arc::clone(id), oneshot::channel());
        // In a task, because this future is dropped if the client leaves, and rmcp must get the request or not.
        self.spawn(async move {
            match inner.create_stream(&session, message).await {
                Ok(events) => {
                    let _ = sender.send(Ok(()));
                    kept.keep(events, is_call).await;
                }
                Err(fault) => drop(sender.send(Err(fault))),
            }
        });
        match begun.await {
            Ok(Ok(())) => Ok(self.read(id, answer, 0)),
            Ok(Err(fault)) => Err(fault.into()),
            Err(_ended) => Err(LocalSessionManagerError::SessionNotFound(Arc::clone(id)).into()),
        }
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
        let has_priming = self.table().get(id).is_some_and(|session| session.has_priming);
        let priming = stream::iter(has_priming.then(answers::priming));
        Ok(self.open_stream(id, priming.chain(self.inner.create_standalone_stream(id).await?)))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        // rmcp's own ids of answers are not passed on, because resuming one of them would end its log.
        if last_event_id.parse::<usize>().is_err() {
            let found = self.table().get(id).and_then(|session| session.answers.find(&last_event_id));
            let events = found.map(|(answer, from)| self.read(id, answer, from));
            // Without the answer, the stream is empty: at an error, the client would try again and again.
            return Ok(stream::iter(events).flatten().left_stream());
        }
        Ok(self.open_stream(id, self.inner.resume(id, last_event_id).await?).right_stream())
    }
}

/// A failed operation on a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// This table refused the request.
    #[error(transparent)]
    Refused(#[from] SessionRefusal),
    /// An operation that needs a caller, outside of any request.
    #[error("a session was used outside of a request")]
    NoRequest,
    /// rmcp's session manager failed.
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
}

#[cfg(test)]
mod tests;
