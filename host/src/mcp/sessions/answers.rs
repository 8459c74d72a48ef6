// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Answers that a client can resume after a lost connection, with the header `Last-Event-ID`.
//!
//! A task per request copies the events of an answer from rmcp into a log. The response to the request reads this log,
//! and so does each later GET with `Last-Event-ID`. rmcp 3.11 has logs as well, but it drops the log of a request when
//! the request ends, so a client that is away at that time would lose the result.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use rmcp::transport::streamable_http_server::session::ServerSseMessage;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use waggle_shared::mutex::lock;

use super::RequestMemory;

/// Time for which an answer stays after its end if no response has delivered it. A client that has lost its connection
/// has this time to return.
pub(super) const UNREAD_RETENTION: Duration = Duration::from_secs(60);

/// Time after which an ended answer that is still unread loses its progress reports, which are not charged to the
/// client.
const REPORTS_RETENTION: Duration = Duration::from_secs(5);

/// Maximum number of ended answers of one session that wait for their client. Another one replaces the oldest.
pub(super) const UNREAD_MAX: usize = 256;

/// Maximum number of answers of one session that stay although a response has delivered them: the connection may have
/// been lost before the client got the last bytes.
pub(super) const READ_MAX: usize = 8;

/// Maximum memory of the result in such an answer, in bytes: enough for an output of the default size, which is in the
/// result twice, and in its written form twice.
const READ_BYTES_MAX: usize = 320 * 1024;

/// Maximum number of reports of an answer that wait for their client: 256 KiB of output. Further ones replace the
/// oldest, which a client that is away, or reads slowly, then misses.
pub(super) const REPORTS_KEPT_MAX: usize = 64;

/// Maximum number of responses that read one answer at a time. Each has the result in its written form. Besides the
/// response to the request there are those of a client that has come back, perhaps before its lost connections were
/// noticed. A further one ends the oldest, and waits until the oldest has released its memory.
pub(super) const RESPONSES_MAX: usize = 4;

/// The interval in which the end of the responses to a request is looked for.
const CLOSED_POLL: Duration = Duration::from_millis(100);

/// The delay after which a client should reconnect. It is sent in the first event of a stream.
const RECONNECT_AFTER: Duration = Duration::from_secs(3);

/// Separates the number of the answer from the number of the event in an event id. The event ids in rmcp's stream of
/// notifications are plain numbers.
const ID_SEPARATOR: char = '-';

/// The answers of one session that a client may still read.
#[derive(Debug, Default)]
pub(super) struct Answers {
    next: u64,
    open: HashMap<u64, Answer>,
    /// The numbers of the ended answers that no response has delivered, oldest first.
    unread: VecDeque<u64>,
    /// The numbers of answers that a response has delivered, perhaps over a connection that was already lost.
    read: VecDeque<u64>,
}

/// An answer that a client may still read.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) number: u64,
    /// The ids of the request, which stay in use until the answer has been read to its end. Empty from then on, because
    /// another request may use them.
    pub(super) ids: Vec<u64>,
    /// The request's reservations. The one of the result is needed until the answer has been written.
    memory: RequestMemory,
    log: watch::Receiver<Log>,
    /// One permit for each response that reads the answer.
    places: Arc<Semaphore>,
    /// The responses that have or wait for a permit, oldest first.
    responses: Arc<Mutex<VecDeque<Weak<ReadingResponse>>>>,
}

/// A response that reads an answer, or waits for a permit to read it.
#[derive(Debug, Default)]
pub(super) struct ReadingResponse {
    /// Cancelled if the response must end before the answer does, because too many others read the answer.
    displaced: CancellationToken,
    permit: OnceLock<OwnedSemaphorePermit>,
}

/// The events of an answer up to now.
#[derive(Debug, Default)]
struct Log {
    events: Vec<ServerSseMessage>,
    /// The number of the oldest events whose content has been dropped.
    dropped: usize,
    has_ended: bool,
}

/// The writing side of an answer's log.
#[derive(Debug)]
pub(super) struct LogWriter {
    pub(super) number: u64,
    log: watch::Sender<Log>,
}

impl Answers {
    /// Adds an answer. With `has_priming`, its first event has no message and only tells the client an id to resume
    /// from. Clients of protocol versions before 2025-11-25 fail to parse such an event.
    pub(super) fn add(&mut self, ids: Vec<u64>, memory: RequestMemory, has_priming: bool) -> (Answer, LogWriter) {
        let number = self.next;
        self.next += 1;
        let (sender, log) = watch::channel(Log::default());
        let writer = LogWriter { number, log: sender };
        if has_priming {
            writer.push(ServerSseMessage::retry(RECONNECT_AFTER));
        }
        let places = Arc::new(Semaphore::new(RESPONSES_MAX));
        let answer = Answer { number, ids, memory, log, places, responses: Arc::default() };
        self.open.insert(number, answer.clone());
        (answer, writer)
    }

    /// Returns the answer with this event, and the number of the next event.
    pub(super) fn find(&self, event_id: &str) -> Option<(Answer, usize)> {
        let (number, event) = event_id.split_once(ID_SEPARATOR)?;
        let answer = self.open.get(&number.parse().ok()?)?;
        let next = event.parse::<usize>().ok()?.checked_add(1)?;
        (next <= answer.log.borrow().events.len()).then(|| (answer.clone(), next))
    }

    /// Whether an answer is being made or waits for its client.
    pub(super) fn has_unread(&self) -> bool {
        self.open.len() > self.read.len()
    }

    /// Records the end of an answer. Returns the oldest unread answer if there are too many.
    pub(super) fn end(&mut self, number: u64) -> Option<Answer> {
        self.open.get(&number)?.memory.shrink_body();
        if self.read.contains(&number) {
            return None;
        }
        self.unread.push_back(number);
        if self.unread.len() <= UNREAD_MAX { None } else { self.remove(*self.unread.front()?) }
    }

    /// Records that a response has delivered an answer, and returns the ids that can be used again. Removes an answer
    /// that need not be kept: this one if it is large, or the oldest delivered answer if there are too many.
    pub(super) fn read(&mut self, number: u64) -> Vec<u64> {
        let Some(answer) = self.open.get_mut(&number) else { return Vec::new() };
        let ids = std::mem::take(&mut answer.ids);
        answer.memory.shrink_body();
        if answer.memory.result_bytes() > READ_BYTES_MAX {
            self.remove(number);
        } else if !self.read.contains(&number) {
            self.unread.retain(|unread| *unread != number);
            self.read.push_back(number);
            if self.read.len() > READ_MAX
                && let Some(oldest) = self.read.pop_front()
            {
                self.open.remove(&oldest);
            }
        }
        ids
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Answer> {
        self.unread.retain(|unread| *unread != number);
        self.read.retain(|read| *read != number);
        self.open.remove(&number)
    }
}

fn is_dropped(event: &ServerSseMessage) -> bool {
    event.message.is_none() && event.retry.is_none()
}

/// Returns the first event of a stream of notifications.
pub(super) fn priming() -> ServerSseMessage {
    ServerSseMessage::priming("0", RECONNECT_AFTER)
}

impl Answer {
    /// Adds a response, which reads the answer until it is dropped. Ends the oldest one if there are too many.
    pub(super) fn add_response(&self) -> Arc<ReadingResponse> {
        let response = Arc::<ReadingResponse>::default();
        let mut responses = lock(&self.responses);
        responses.retain(|other| other.strong_count() > 0);
        if responses.len() >= RESPONSES_MAX
            && let Some(oldest) = responses.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.displaced.cancel();
        }
        responses.push_back(Arc::downgrade(&response));
        response
    }

    /// Returns the events from this number on for a response. The stream waits for further events until the answer
    /// ends or the response is displaced.
    pub(super) fn events(
        &self,
        from: usize,
        response: &Arc<ReadingResponse>,
    ) -> impl Stream<Item = ServerSseMessage> + Send + Sync + use<> {
        let displaced = response.displaced.clone().cancelled_owned();
        let (places, response) = (Arc::clone(&self.places), Arc::downgrade(response));
        let admitted = async move {
            if let Ok(permit) = places.acquire_owned().await
                && let Some(response) = response.upgrade()
            {
                let _ = response.permit.set(permit);
            }
        };
        let log = self.log.clone();
        stream::once(admitted).flat_map(move |()| logged(log.clone(), from)).take_until(displaced)
    }
}

impl ReadingResponse {
    pub(super) fn is_displaced(&self) -> bool {
        self.displaced.is_cancelled()
    }
}

/// Returns the events in a log from this number on.
fn logged(log: watch::Receiver<Log>, from: usize) -> impl Stream<Item = ServerSseMessage> + Send + Sync {
    stream::unfold((log, from), async |(mut log, next)| {
        loop {
            {
                let log = log.borrow_and_update();
                let left = log.events.get(next..).unwrap_or_default();
                let next = left.iter().zip(next + 1..).find(|(event, _)| !is_dropped(event));
                if next.is_some() || log.has_ended {
                    break next.map(|(event, next)| (event.clone(), next));
                }
            }
            if log.changed().await.is_err() {
                break None;
            }
        }
        .map(|(event, next)| (event, (log, next)))
    })
}

impl LogWriter {
    /// Copies the events of an answer until it ends.
    pub(super) async fn copy(&self, answer: impl Stream<Item = ServerSseMessage>) {
        let mut answer = pin!(answer);
        while let Some(event) = answer.next().await {
            self.push(event);
        }
        self.log.send_modify(|log| log.has_ended = true);
    }

    /// Waits until all responses that read the answer have ended, at most for [`UNREAD_RETENTION`].
    pub(super) async fn until_closed(&self) {
        // One more receiver is in the table.
        let responses = async {
            while self.log.receiver_count() > 1 {
                sleep(CLOSED_POLL).await;
            }
        };
        let _ = timeout(UNREAD_RETENTION, responses).await;
    }

    /// Waits until the answer has been removed and its readers have ended, at most for [`UNREAD_RETENTION`].
    pub(super) async fn until_read(&self) {
        if timeout(REPORTS_RETENTION, self.log.closed()).await.is_err() {
            self.drop_reports();
            let _ = timeout(UNREAD_RETENTION - REPORTS_RETENTION, self.log.closed()).await;
        }
    }

    /// Drops the content of all events except the last, which is the result.
    fn drop_reports(&self) {
        self.log.send_modify(|log| {
            if let Some((_result, reports)) = log.events.split_last_mut() {
                for report in reports {
                    (report.message, report.retry) = (None, None);
                }
            }
        });
    }

    fn push(&self, mut event: ServerSseMessage) {
        self.log.send_modify(|log| {
            event.event_id = Some(format!("{}{ID_SEPARATOR}{}", self.number, log.events.len()));
            log.events.push(event);
            if log.events.len() - log.dropped > REPORTS_KEPT_MAX {
                if let Some(oldest) = log.events.get_mut(log.dropped) {
                    (oldest.message, oldest.retry) = (None, None);
                }
                log.dropped += 1;
            }
        });
    }
}
