// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sessions of the dialect that has them: how many there can be, and whose each is.
//!
//! rmcp's own table has no limit and knows no principals. This one stands in front of it: a session is there only for
//! the principal that began it, to everybody else its id is as unknown as any. A full table refuses the next session,
//! unless one has been left alone for long enough to be ended in its favour. Those that have been silent for an hour
//! end whenever another one begins.

mod names;

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

use self::names::{Names, cancelled_by, names_of};
use super::kept::{Kept, Unasked};
use crate::{domain::principal::Principal, mutex::lock};

/// A session without a call that has been silent for so long may be ended in favour of a new one when there is no room.
/// Its client begins another one when it comes back.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// One that has been silent for so long is ended when the next one begins, room or not.
const LEFT_FOR_GOOD_AFTER: Duration = Duration::from_secs(60 * 60);

tokio::task_local! {
    static CALLER: Caller;
}

/// Whose request is being answered.
struct Caller {
    principal: Principal,
    /// What the request holds until its answer is out.
    kept: Kept,
    /// Why the session that it is for does not take it.
    refusal: Cell<Option<SessionRefusal>>,
}

/// Answers a request on behalf of a principal; what it holds is kept for as long as its answer is.
///
/// # Errors
/// [`SessionRefusal`] if the answer would have begun a session, or a request of one, that there can't be.
pub async fn on_behalf<F: Future>(principal: Principal, kept: Kept, answer: F) -> Result<F::Output, SessionRefusal> {
    let answer = async {
        let output = answer.await;
        (output, CALLER.with(|caller| caller.refusal.get()))
    };
    match CALLER.scope(Caller { principal, kept, refusal: Cell::new(None) }, answer).await {
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
    left_for_good_after: Duration,
}

#[derive(Debug)]
struct Entry {
    owner: Principal,
    last_request: Instant,
    /// Each open answer holds it.
    open: Weak<()>,
    names: Names,
    unasked: Unasked,
}

impl Sessions {
    /// None yet, and room for so many.
    pub(super) fn new(inner: LocalSessionManager, sessions_max: usize) -> Self {
        let (table, creating) = (Arc::default(), tokio::sync::Mutex::default());
        let (abandoned_after, left_for_good_after) = (ABANDONED_AFTER, LEFT_FOR_GOOD_AFTER);
        Self { inner, table, creating, sessions_max, abandoned_after, left_for_good_after }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        lock(&self.table)
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
        let Some(entry) = table.get(id) else { return false };
        CALLER.try_with(|caller| caller.principal == entry.owner).unwrap_or(true)
    }

    /// Whether it takes no more requests.
    fn is_worn(&self, id: &SessionId) -> bool {
        self.table().get(id).is_some_and(|entry| entry.names.are_worn())
    }

    /// Sessions that nobody will come back to.
    fn left_for_good(&self) -> Vec<SessionId> {
        let table = self.table();
        let gone = table.iter().filter(|(_, entry)| {
            let is_silent = entry.last_request.elapsed() >= self.left_for_good_after;
            entry.open.strong_count() == 0 && (is_silent || entry.names.are_worn())
        });
        gone.map(|(id, _)| Arc::clone(id)).collect()
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
        InUse { stream: Box::pin(stream), taken: None, _left_with: Vec::new(), _open: self.touch(id) }
    }

    /// Takes what a request of the session is called.
    fn take(&self, id: &SessionId, message: &ClientJsonRpcMessage) -> Result<Taken, SessionFault> {
        let names = names_of(message);
        let kept = CALLER.try_with(|caller| caller.kept.clone()).unwrap_or_default();
        if let Some(entry) = self.table().get_mut(id) {
            entry.names.take(&names, &kept).map_err(refused)?;
        }
        Ok(Taken { table: Arc::clone(&self.table), id: Arc::clone(id), names, kept, ended: false })
    }

    /// A result that comes when its request has been cancelled belongs to none, and rmcp keeps it as long as the
    /// session.
    fn note_cancel(&self, id: &SessionId, message: &ClientJsonRpcMessage) {
        let Some(request) = cancelled_by(message) else { return };
        let table = self.table();
        let Some(entry) = table.get(id) else { return };
        if let Some(kept) = entry.names.kept_by(request) {
            kept.leave_to(&entry.unasked);
        }
    }
}

fn refused(refusal: SessionRefusal) -> SessionFault {
    let _ = CALLER.try_with(|caller| caller.refusal.set(Some(refusal)));
    SessionFault::Refused(refusal)
}

/// What a request is called, until its answer has ended.
struct Taken {
    table: Arc<Mutex<HashMap<SessionId, Entry>>>,
    id: SessionId,
    names: Vec<u64>,
    kept: Kept,
    ended: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(entry) = table.get_mut(&self.id) {
            entry.names.give_back(&self.names, self.ended, &self.kept);
        }
    }
}

/// What keeps a session from counting as left alone while it is read.
struct InUse<S> {
    stream: Pin<Box<S>>,
    taken: Option<Taken>,
    /// What the answers hold that it may have taken up again.
    _left_with: Vec<Kept>,
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
        for gone in self.left_for_good() {
            self.forget(&gone).await?;
        }
        if let Some(left_alone) = self.make_room()? {
            self.forget(&left_alone).await?;
        }
        let (id, transport) = self.inner.create_session().await?;
        let owner = CALLER.try_with(|caller| caller.principal.clone()).unwrap_or_else(|_| Principal::anonymous());
        let (names, unasked) = (Names::default(), Unasked::default());
        let entry = Entry { owner, last_request: Instant::now(), open: Weak::new(), names, unasked };
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
        Ok(self.is_callers(id) && !self.is_worn(id) && self.inner.has_session(id).await?)
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
        self.note_cancel(id, &message);
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
        let left_with = self.table().get(id).map(|entry| entry.names.left_with()).unwrap_or_default();
        let mut stream = self.used(id, self.inner.resume(id, last_event_id).await?);
        stream._left_with = left_with;
        Ok(stream)
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
        let created = on_behalf(named(name), Kept::default(), sessions.create_session()).await?;
        Ok(created.unwrap().0)
    }

    #[tokio::test]
    async fn a_session_is_there_for_its_owner_only() {
        let sessions = Sessions::new(LocalSessionManager::default(), 2);
        let id = create(&sessions, "ada").await.unwrap();
        let known_to = |name| on_behalf(named(name), Kept::default(), sessions.has_session(&id));
        assert_eq!((known_to("ada").await.unwrap().unwrap(), known_to("bob").await.unwrap().unwrap()), (true, false));
        on_behalf(named("bob"), Kept::default(), sessions.close_session(&id)).await.unwrap().unwrap();
        assert!(known_to("ada").await.unwrap().unwrap());
        on_behalf(named("ada"), Kept::default(), sessions.close_session(&id)).await.unwrap().unwrap();
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
            on_behalf(named("ada"), Kept::default(), async {
                sessions.take(&id, &message).map_err(|fault| fault.to_string())
            })
            .await
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
        for number in 2..=u32::try_from(names::LEFT_MAX).unwrap() {
            assert!(!sessions.is_worn(&id));
            drop(open(take(message(number, number + 10_000)).await.unwrap().unwrap()));
        }
        assert!(sessions.is_worn(&id));
        assert!(!on_behalf(named("ada"), Kept::default(), sessions.has_session(&id)).await.unwrap().unwrap());
        // The next session ends it.
        create(&sessions, "ada").await.unwrap();
        assert!(!sessions.table().contains_key(&id));
    }

    #[tokio::test]
    async fn a_session_that_is_silent_for_long_ends_when_another_one_begins() {
        let left_for_good_after = Duration::from_millis(100);
        let sessions = Sessions { left_for_good_after, ..Sessions::new(LocalSessionManager::default(), 9) };
        let [first, second] = [create(&sessions, "ada").await.unwrap(), create(&sessions, "ada").await.unwrap()];
        let _reading = sessions.used(&first, futures_util::stream::pending::<ServerSseMessage>());
        tokio::time::sleep(left_for_good_after).await;
        create(&sessions, "bob").await.unwrap();
        let there = [&first, &second].map(|id| sessions.table().contains_key(id));
        assert_eq!(there, [true, false]);
    }

    #[tokio::test]
    async fn what_a_cancelled_request_comes_to_is_held_until_its_session_ends() {
        let sessions = Sessions::new(LocalSessionManager::default(), 2);
        let id = create(&sessions, "ada").await.unwrap();
        let message = |json: serde_json::Value| serde_json::from_value::<ClientJsonRpcMessage>(json).unwrap();
        let call = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}});
        let cancel = |number: u32| {
            let method = "notifications/cancelled";
            message(serde_json::json!({"jsonrpc": "2.0", "method": method, "params": {"requestId": number}}))
        };
        let kept = Kept::default();
        let taken = on_behalf(named("ada"), kept.clone(), async { sessions.take(&id, &message(call)) }).await.unwrap();
        let budget = crate::budget::Budget::new(1024 * 1024);
        let unasked = || sessions.table()[&id].unasked.len();
        kept.keep(budget.room(&named("ada"), 1).await);
        sessions.note_cancel(&id, &cancel(2));
        assert_eq!(unasked(), 0);
        sessions.note_cancel(&id, &cancel(1));
        assert_eq!(unasked(), 1);
        drop(taken.unwrap());
        kept.keep(budget.room(&named("ada"), 1).await);
        assert_eq!(unasked(), 2);
    }

    #[tokio::test]
    async fn who_takes_up_an_answer_that_was_left_holds_what_its_request_held() {
        let sessions = Sessions::new(LocalSessionManager::default(), 2);
        let id = create(&sessions, "ada").await.unwrap();
        let call = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}});
        let message: ClientJsonRpcMessage = serde_json::from_value(call).unwrap();
        let kept = Kept::default();
        let taken = on_behalf(named("ada"), kept.clone(), async { sessions.take(&id, &message) }).await.unwrap();
        drop(taken.unwrap());
        let left_with = || sessions.table()[&id].names.left_with().len();
        assert_eq!(left_with(), 1);
        // The call is over, and its answer has gone with it.
        drop(kept);
        assert_eq!(left_with(), 0);
    }
}
