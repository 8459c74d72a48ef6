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
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use rmcp::transport::streamable_http_server::session::ServerSseMessage;
use tokio::{sync::watch, time::timeout};

use super::RequestMemory;

/// Time for which an answer stays after its end if no response has delivered it. A client that has lost its connection
/// has this time to return.
pub(super) const UNREAD_RETENTION: Duration = Duration::from_secs(60);

/// Time after which an ended answer that is still unread loses its progress reports, which are not charged to the
/// client.
const REPORTS_RETENTION: Duration = Duration::from_secs(5);

/// Maximum number of ended answers of one session that wait for their client. Another one replaces the oldest.
pub(super) const UNREAD_MAX: usize = 256;

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
    /// The numbers of the ended answers, oldest first.
    ended: VecDeque<u64>,
}

/// An answer that a client may still read.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) number: u64,
    /// The ids of the request, which stay in use as long as the answer can be read.
    pub(super) ids: Vec<u64>,
    /// The request's reservations. The one of the result is needed until the answer has been written.
    memory: RequestMemory,
    log: watch::Receiver<Log>,
}

/// The events of an answer up to now.
#[derive(Debug, Default)]
struct Log {
    events: Vec<ServerSseMessage>,
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
        let answer = Answer { number, ids, memory, log };
        self.open.insert(number, answer.clone());
        (answer, writer)
    }

    /// Returns the answer with this event, and the number of the next event.
    pub(super) fn find(&self, event_id: &str) -> Option<(Answer, usize)> {
        let (number, event) = event_id.split_once(ID_SEPARATOR)?;
        let answer = self.open.get(&number.parse().ok()?)?;
        Some((answer.clone(), event.parse::<usize>().ok()?.checked_add(1)?))
    }

    /// Records the end of an answer. Returns the oldest ended answer if there are too many.
    pub(super) fn end(&mut self, number: u64) -> Option<Answer> {
        self.open.get(&number)?.memory.release_body();
        self.ended.push_back(number);
        if self.ended.len() <= UNREAD_MAX { None } else { self.remove(*self.ended.front()?) }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Answer> {
        self.ended.retain(|ended| *ended != number);
        self.open.remove(&number)
    }
}

fn is_dropped(event: &ServerSseMessage) -> bool {
    event.message.is_none() && event.retry.is_none()
}

/// Whether an event belongs to an answer, and not to the session's stream of notifications.
pub(super) fn is_of_answer(event_id: &str) -> bool {
    event_id.contains(ID_SEPARATOR)
}

/// Returns the first event of a stream of notifications.
pub(super) fn priming() -> ServerSseMessage {
    ServerSseMessage::priming("0", RECONNECT_AFTER)
}

impl Answer {
    /// Returns the events from this number on. The stream waits for further events until the answer ends.
    pub(super) fn events(&self, from: usize) -> impl Stream<Item = ServerSseMessage> + Send + Sync + use<> {
        stream::unfold((self.log.clone(), from), async |(mut log, next)| {
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
        });
    }
}
