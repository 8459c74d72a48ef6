// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sessions of the dialect that has them: how many there can be, and whose each is.
//!
//! rmcp's own table has no limit and knows no principals. This one stands in front of it: a session is there only for
//! the principal that began it, to everybody else its id is as unknown as any. A full table refuses the next session,
//! unless one has been left alone for long enough to be ended in its favour.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, GetMeta as _, NumberOrString, ServerJsonRpcMessage},
    transport::streamable_http_server::session::{
        ServerSseMessage, SessionId, SessionManager,
        local::{LocalSessionManager, LocalSessionManagerError, SessionTransport},
    },
};
use tokio::time::Instant;

use crate::domain::environment::Principal;

/// A session without a call that has been silent for so long may be ended in favour of a new one when there is no room.
/// Its client begins another one when it comes back.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// Answers of one session that its client did not read to their ends: what those requests were called stays taken. With
/// so many the session is over, and its client begins another one.
const LEFT_MAX: usize = 1024;

tokio::task_local! {
    /// Whose request is being answered, and why the session that it is for does not take it.
    static CALLER: (Principal, Cell<Option<SessionRefusal>>);
}

/// Answers a request on behalf of a principal.
///
/// # Errors
/// [`SessionRefusal`] if the answer would have begun a session, or a request of one, that there can't be.
pub async fn on_behalf<F: Future>(principal: Principal, answer: F) -> Result<F::Output, SessionRefusal> {
    let answer = async {
        let output = answer.await;
        (output, CALLER.with(|(_, refusal)| refusal.get()))
    };
    match CALLER.scope((principal, Cell::new(None)), answer).await {
        (_, Some(refusal)) => Err(refusal),
        (output, None) => Ok(output),
    }
}

/// Why a session is not begun, or does not take a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SessionRefusal {
    /// There is no room for another session.
    #[error("there are as many sessions as this server has room for; end one, or try again in a minute")]
    Full,
    /// Answers find their way by the request's id, and reports by its progress token.
    #[error(
        "a request of this session that is not over yet has the same id, or the same progress token; use another one"
    )]
    Repeated,
}

/// Sessions with a limit, and with owners.
#[derive(Debug)]
pub struct Sessions {
    inner: LocalSessionManager,
    table: Arc<Mutex<HashMap<SessionId, Entry>>>,
    /// Held from the look for room to the entry that takes it.
    creating: tokio::sync::Mutex<()>,
    sessions_max: usize,
    abandoned_after: Duration,
}

#[derive(Debug)]
struct Entry {
    owner: Principal,
    last_request: Instant,
    /// Each open answer holds it.
    open: Weak<()>,
    names: Names,
}

/// What the requests of a session are called that are not over, or whose answers were left: hashes of their ids and of
/// their progress tokens, which may be as long as a body. Two that are the same by chance cost their client an error.
#[derive(Debug, Default)]
struct Names {
    taken: HashSet<u64>,
    left: usize,
}

impl Names {
    fn take(&mut self, names: &[u64]) -> Result<(), SessionRefusal> {
        if names.iter().any(|name| self.taken.contains(name)) {
            return Err(SessionRefusal::Repeated);
        }
        self.taken.extend(names);
        Ok(())
    }

    fn give_back(&mut self, names: &[u64], ended: bool) {
        if ended {
            self.taken.retain(|name| !names.contains(name));
        } else {
            self.left += 1;
        }
    }
}

fn names_of(message: &ClientJsonRpcMessage) -> Vec<u64> {
    let ClientJsonRpcMessage::Request(request) = message else { return Vec::new() };
    let token = request.request.get_meta().get_progress_token();
    let hash = |kind: &str, name: &NumberOrString| {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        hasher.finish()
    };
    let token = token.map(|token| hash("token", &token.0));
    [Some(hash("id", &request.id)), token].into_iter().flatten().collect()
}

impl Sessions {
    /// None yet, and room for so many.
    pub(super) fn new(inner: LocalSessionManager, sessions_max: usize) -> Self {
        let (table, creating) = (Arc::default(), tokio::sync::Mutex::default());
        Self { inner, table, creating, sessions_max, abandoned_after: ABANDONED_AFTER }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        // Nothing panics while it holds this lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more; the session to be ended for it, if there has to be one.
    fn make_room(&self) -> Result<Option<SessionId>, SessionFault> {
        let table = self.table();
        if table.len() < self.sessions_max {
            return Ok(None);
        }
        let left_alone = table.iter().filter(|(_, entry)| {
            entry.open.strong_count() == 0 && entry.last_request.elapsed() >= self.abandoned_after
        });
        match left_alone.min_by_key(|(_, entry)| entry.last_request) {
            Some((id, _)) => Ok(Some(Arc::clone(id))),
            None => Err(refused(SessionRefusal::Full)),
        }
    }

    /// Whether the caller may know of a session; what ends sessions of itself may know of all.
    fn is_callers(&self, id: &SessionId) -> bool {
        let table = self.table();
        let Some(entry) = table.get(id).filter(|entry| entry.names.left < LEFT_MAX) else { return false };
        CALLER.try_with(|(caller, _)| *caller == entry.owner).unwrap_or(true)
    }

    /// Notes that the session is used, and that it is until the token is dropped.
    fn touch(&self, id: &SessionId) -> Option<Arc<()>> {
        let mut table = self.table();
        let entry = table.get_mut(id)?;
        entry.last_request = Instant::now();
        let open = entry.open.upgrade().unwrap_or_default();
        entry.open = Arc::downgrade(&open);
        Some(open)
    }

    fn used<S>(&self, id: &SessionId, stream: S) -> InUse<S> {
        InUse { stream: Box::pin(stream), taken: None, _open: self.touch(id) }
    }

    /// Takes what a request of the session is called.
    fn take(&self, id: &SessionId, message: &ClientJsonRpcMessage) -> Result<Taken, SessionFault> {
        let names = names_of(message);
        if let Some(entry) = self.table().get_mut(id) {
            entry.names.take(&names).map_err(refused)?;
        }
        Ok(Taken { table: Arc::clone(&self.table), id: Arc::clone(id), names, ended: false })
    }
}

fn refused(refusal: SessionRefusal) -> SessionFault {
    let _ = CALLER.try_with(|(_, why)| why.set(Some(refusal)));
    SessionFault::Refused(refusal)
}

/// What a request is called, until its answer has ended.
struct Taken {
    table: Arc<Mutex<HashMap<SessionId, Entry>>>,
    id: SessionId,
    names: Vec<u64>,
    ended: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.get_mut(&self.id) {
            entry.names.give_back(&self.names, self.ended);
        }
    }
}

/// What keeps a session from counting as left alone while it is read.
struct InUse<S> {
    stream: Pin<Box<S>>,
    taken: Option<Taken>,
    _open: Option<Arc<()>>,
}

impl<S: Stream> Stream for InUse<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.stream.as_mut().poll_next(context);
        if let (Poll::Ready(None), Some(taken)) = (&polled, &mut self.taken) {
            taken.ended = true;
        }
        polled
    }
}

impl SessionManager for Sessions {
    type Error = SessionFault;
    type Transport = SessionTransport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionFault> {
        let _creating = self.creating.lock().await;
        if let Some(left_alone) = self.make_room()? {
            self.forget(&left_alone).await?;
        }
        let (id, transport) = self.inner.create_session().await?;
        let owner = CALLER.try_with(|(caller, _)| caller.clone()).unwrap_or_else(|_| Principal::anonymous());
        let entry = Entry { owner, last_request: Instant::now(), open: Weak::new(), names: Names::default() };
        self.table().insert(Arc::clone(&id), entry);
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
        Ok(self.is_callers(id) && self.inner.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionFault> {
        if self.is_callers(id) { self.forget(id).await } else { Ok(()) }
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        let taken = self.take(id, &message)?;
        let mut stream = self.used(id, self.inner.create_stream(id, message).await?);
        stream.taken = Some(taken);
        Ok(stream)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), SessionFault> {
        self.touch(id);
        Ok(self.inner.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        Ok(self.used(id, self.inner.create_standalone_stream(id).await?))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionFault> {
        Ok(self.used(id, self.inner.resume(id, last_event_id).await?))
    }
}

impl Sessions {
    async fn forget(&self, id: &SessionId) -> Result<(), SessionFault> {
        self.table().remove(id);
        Ok(self.inner.close_session(id).await?)
    }
}

/// A session cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// Ours.
    #[error(transparent)]
    Refused(#[from] SessionRefusal),
    /// rmcp's reason.
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Principal {
        name.parse().unwrap()
    }

    async fn create(sessions: &Sessions, name: &str) -> Result<SessionId, SessionRefusal> {
        let created = on_behalf(named(name), sessions.create_session()).await?;
        Ok(created.unwrap().0)
    }

    #[tokio::test]
    async fn a_session_is_there_for_its_owner_only() {
        let sessions = Sessions::new(LocalSessionManager::default(), 2);
        let id = create(&sessions, "ada").await.unwrap();
        let known_to = |name| on_behalf(named(name), sessions.has_session(&id));
        assert_eq!((known_to("ada").await.unwrap().unwrap(), known_to("bob").await.unwrap().unwrap()), (true, false));
        on_behalf(named("bob"), sessions.close_session(&id)).await.unwrap().unwrap();
        assert!(known_to("ada").await.unwrap().unwrap());
        on_behalf(named("ada"), sessions.close_session(&id)).await.unwrap().unwrap();
        assert!(!known_to("ada").await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn a_full_table_ends_what_is_left_alone_and_refuses_otherwise() {
        let abandoned_after = Duration::from_millis(200);
        let sessions = Sessions { abandoned_after, ..Sessions::new(LocalSessionManager::default(), 2) };
        let first = create(&sessions, "ada").await.unwrap();
        let second = create(&sessions, "ada").await.unwrap();
        assert_eq!(create(&sessions, "bob").await, Err(SessionRefusal::Full));
        // One is read from, which has no end; so the other one has to go.
        let reading = sessions.used(&first, futures_util::stream::pending::<ServerSseMessage>());
        tokio::time::sleep(abandoned_after).await;
        let third = create(&sessions, "bob").await.unwrap();
        let there = [&first, &second, &third].map(|id| sessions.table().contains_key(id));
        assert_eq!(there, [true, false, true]);
        drop(reading);
        assert_eq!(create(&sessions, "bob").await.map(|_| ()), Ok(()));
        assert_eq!(sessions.table().len(), 2);
    }

    #[tokio::test]
    async fn what_a_request_is_called_is_taken_until_its_answer_has_ended() {
        use futures_util::StreamExt as _;
        let sessions = Sessions::new(LocalSessionManager::default(), 2);
        let id = create(&sessions, "ada").await.unwrap();
        let message = |number: u32, token: u32| {
            let params = serde_json::json!({"name": "x", "_meta": {"progressToken": token}});
            let call = serde_json::json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params});
            serde_json::from_value::<ClientJsonRpcMessage>(call).unwrap()
        };
        let take = async |message: ClientJsonRpcMessage| {
            on_behalf(named("ada"), async { sessions.take(&id, &message).map_err(|fault| fault.to_string()) }).await
        };
        let open = |taken| {
            let mut stream = sessions.used(&id, futures_util::stream::empty::<ServerSseMessage>());
            stream.taken = Some(taken);
            stream
        };
        let first = take(message(1, 10)).await.unwrap().unwrap();
        for repeated in [message(1, 11), message(2, 10)] {
            assert_eq!(take(repeated).await.map(|_| ()), Err(SessionRefusal::Repeated));
        }
        // Read to its end, it is over; one that was left is not.
        assert_eq!(open(first).next().await.map(|_| ()), None);
        drop(open(take(message(1, 10)).await.unwrap().unwrap()));
        assert_eq!(take(message(1, 12)).await.map(|_| ()), Err(SessionRefusal::Repeated));
        for number in 2..=u32::try_from(LEFT_MAX).unwrap() {
            assert!(sessions.is_callers(&id));
            drop(open(take(message(number, number + 10_000)).await.unwrap().unwrap()));
        }
        assert!(!sessions.is_callers(&id));
    }
}
