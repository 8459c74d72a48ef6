// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The streams of one link, shared by the driver and the handles of the streams.
//!
//! ```text
//!   handle ──push──▶ queued ──fill──▶ frames       queued: within the peer's credit, at most queue_max
//!   handle ◀─read── received ◀──data── frames      received: within the credit granted
//! ```
//!
//! Everything that this side has to send is state of a stream: the open, one grant, the queued data, the end, the
//! close. So frames do not pile up for a peer that does not read, and this side can read at all times. Streams with
//! something to send take turns, and in each turn a stream fills at most one write.
//!
//! A stream exists until both sides have sent a close. Only then does its number become free, so no frame of an old
//! stream can arrive on a new one.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{io::ReadBuf, sync::Semaphore};

use crate::{
    breach::Breach,
    header::{Frame, HEADER_BYTES},
    limits::{LinkLimits, WRITE_BYTES_MAX},
    window::{Pool, Window},
};

/// Bytes of the headers that a stream sends in one turn: an open, a grant, data, an end, a close.
const TURN_HEADER_BYTES: usize = 5 * HEADER_BYTES;

/// The state of a link, and the means to wait for a free stream.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// One permit for each stream that this side may open. Closed when the link has ended.
    pub(crate) stream_permits: Semaphore,
}

impl Shared {
    pub(crate) fn new(limits: LinkLimits, opens: bool) -> Self {
        let stream_permits = Semaphore::new(if opens { limits.streams_max } else { 0 });
        Self { state: Mutex::new(State::new(limits, opens)), stream_permits }
    }

    /// Accesses the state. Wakes the tasks that wait for a change only after the lock is released.
    pub(crate) fn with<T>(&self, access: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = access(&mut state);
        let (woken, freed) = (std::mem::take(&mut state.woken), std::mem::take(&mut state.freed));
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        if freed > 0 {
            self.stream_permits.add_permits(freed);
        }
        result
    }

    /// Ends the link: the streams accept nothing more, and the driver ends once it has sent what waits.
    pub(crate) fn end(&self) {
        self.stream_permits.close();
        self.with(State::end);
    }
}

/// The streams of a link.
#[derive(Debug)]
pub(crate) struct State {
    limits: LinkLimits,
    /// This side opens the streams.
    opens: bool,
    streams: Vec<Option<Box<StreamState>>>,
    /// The streams that have something to send, in the order of their turns.
    ready: VecDeque<u32>,
    pool: Pool,
    /// The link has ended, or the driver must end it.
    pub(crate) ended: bool,
    driver: Option<Waker>,
    /// The driver waits for something to send.
    is_idle: bool,
    /// Tasks to wake after this access.
    woken: Vec<Waker>,
    /// Number of this side's streams whose number became free during this access.
    freed: usize,
}

/// One stream that at least one side has not closed.
#[derive(Debug)]
struct StreamState {
    /// Data that the handle has not read.
    received: VecDeque<u8>,
    window: Window,
    peer_ended: bool,
    peer_closed: bool,
    /// This side's unused credit.
    credit: u32,
    /// Data to send. The credit for it is used up already.
    queued: VecDeque<u8>,
    /// Credit to grant, 0 for none.
    grant: u32,
    open: Progress,
    end: Progress,
    close: Progress,
    /// The stream is in the queue of turns.
    is_ready: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Waits for a reset.
    watcher: Option<Waker>,
}

/// The progress of a frame that this side sends at most once per stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    NotDue,
    Due,
    Sent,
}

impl Progress {
    /// Returns true if the frame is due, and marks it as sent.
    fn send(&mut self) -> bool {
        let is_due = *self == Self::Due;
        if is_due {
            *self = Self::Sent;
        }
        is_due
    }
}

impl StreamState {
    fn new(limits: &LinkLimits, open: Progress) -> Self {
        Self {
            received: VecDeque::new(),
            window: Window::new(limits),
            peer_ended: false,
            peer_closed: false,
            credit: limits.credit,
            queued: VecDeque::new(),
            grant: 0,
            open,
            end: Progress::NotDue,
            close: Progress::NotDue,
            is_ready: false,
            reader: None,
            writer: None,
            watcher: None,
        }
    }

    fn has_output(&self) -> bool {
        self.grant > 0 || !self.queued.is_empty() || self.end == Progress::Due || self.close == Progress::Due
    }

    fn is_closed(&self) -> bool {
        self.peer_closed && self.close == Progress::Sent
    }

    fn capacity(&self, limits: &LinkLimits) -> usize {
        (self.credit as usize).min(limits.queue_max.saturating_sub(self.queued.len()))
    }

    /// Appends the frames of one turn.
    fn fill(&mut self, stream: u32, output: &mut Vec<u8>) {
        let send = |output: &mut Vec<u8>, frame: Frame| output.extend_from_slice(&frame.encode(stream));
        // The peer learns of a stream together with the first data on it.
        if self.open.send() {
            send(output, Frame::Open);
        }
        let bytes = std::mem::take(&mut self.grant);
        if bytes > 0 {
            send(output, Frame::Credit { bytes });
        }
        let fits = WRITE_BYTES_MAX.saturating_sub(output.len() + TURN_HEADER_BYTES);
        let bytes = self.queued.len().min(fits);
        if bytes > 0 {
            send(output, Frame::Data { bytes: u32::try_from(bytes).unwrap_or(u32::MAX) });
            take(&mut self.queued, bytes, |part| output.extend_from_slice(part));
        }
        if !self.queued.is_empty() {
            return;
        }
        if self.end.send() {
            send(output, Frame::End);
        }
        if self.close.send() {
            send(output, Frame::Close);
        }
    }

    fn wake_all(&mut self, woken: &mut Vec<Waker>) {
        woken.extend([self.reader.take(), self.writer.take(), self.watcher.take()].into_iter().flatten());
    }
}

/// The driver's part.
impl State {
    fn new(limits: LinkLimits, opens: bool) -> Self {
        let mut streams = Vec::new();
        streams.resize_with(limits.streams_max, || None);
        Self {
            limits,
            opens,
            streams,
            ready: VecDeque::new(),
            pool: Pool::new(limits.pool),
            ended: false,
            driver: None,
            is_idle: false,
            woken: Vec::new(),
            freed: 0,
        }
    }

    /// Processes a frame from the peer, except for the body. Returns true if the frame opened a stream.
    pub(crate) fn on_frame(&mut self, frame: Frame, stream: u32) -> Result<bool, Breach> {
        if frame == Frame::Open {
            return self.on_open(stream).map(|()| true);
        }
        let known = |state: &&mut StreamState| state.open == Progress::Sent && !state.peer_closed;
        let state = find(&mut self.streams, stream).filter(known).ok_or(Breach::NotOpen { stream })?;
        let woken = match frame {
            Frame::Data { bytes } => {
                let credit = if state.peer_ended { 0 } else { state.window.open() };
                if bytes > credit {
                    return Err(Breach::Data { bytes, credit });
                }
                state.window.received(bytes);
                None
            }
            Frame::Credit { bytes } => {
                let (credit, credit_max) = (state.credit, self.limits.credit_max);
                let all = credit.checked_add(bytes).filter(|all| *all <= credit_max);
                state.credit = all.ok_or(Breach::Credit { bytes, credit, credit_max })?;
                state.writer.take()
            }
            Frame::End if state.peer_ended => return Err(Breach::Ended { stream }),
            Frame::End => {
                state.peer_ended = true;
                state.grant = 0;
                state.reader.take()
            }
            // An open returned above.
            Frame::Open | Frame::Close => {
                state.peer_closed = true;
                state.queued = VecDeque::new();
                state.wake_all(&mut self.woken);
                self.free_if_closed(stream);
                None
            }
        };
        self.woken.extend(woken);
        Ok(false)
    }

    fn on_open(&mut self, stream: u32) -> Result<(), Breach> {
        if self.opens {
            return Err(Breach::UnexpectedStream);
        }
        let streams_max = self.limits.streams_max;
        let free = self.streams.get_mut(stream as usize).filter(|state| state.is_none());
        *free.ok_or(Breach::Opened { stream, streams_max })? =
            Some(Box::new(StreamState::new(&self.limits, Progress::Sent)));
        Ok(())
    }

    /// Processes a part of a data frame's body.
    pub(crate) fn on_data(&mut self, stream: u32, part: &[u8]) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        // Data for a dropped handle is discarded.
        if state.close == Progress::NotDue {
            append(&mut state.received, part, state.window.size());
            self.woken.extend(state.reader.take());
        }
    }

    /// Appends frames to `output` until it is full or nothing is left to send. Registers the driver to be woken.
    pub(crate) fn fill(&mut self, output: &mut Vec<u8>, cx: &Context<'_>) {
        while output.len() + TURN_HEADER_BYTES < WRITE_BYTES_MAX {
            let Some(stream) = self.ready.pop_front() else { break };
            let Some(state) = find(&mut self.streams, stream) else { continue };
            state.fill(stream, output);
            state.is_ready = state.has_output();
            if state.is_ready {
                self.ready.push_back(stream);
            }
            if state.capacity(&self.limits) > 0 {
                self.woken.extend(state.writer.take());
            }
            self.free_if_closed(stream);
        }
        self.is_idle = output.is_empty();
        register(&mut self.driver, cx);
    }

    pub(crate) fn pool_left(&self) -> usize {
        self.pool.left()
    }

    fn end(&mut self) {
        self.ended = true;
        self.woken.extend(self.driver.clone());
        for state in self.streams.iter_mut().flatten() {
            state.wake_all(&mut self.woken);
        }
    }

    fn free_if_closed(&mut self, stream: u32) {
        let Some(entry) = self.streams.get_mut(stream as usize) else { return };
        if entry.as_ref().is_some_and(|state| state.is_closed()) {
            *entry = None;
            self.freed += usize::from(self.opens);
        }
    }
}

/// The handles' part. The state of a stream exists as long as its handle.
impl State {
    /// Opens a stream and returns its number. The caller must hold one of the [`Shared::stream_permits`].
    pub(crate) fn open(&mut self) -> Option<u32> {
        let (number, entry) = self.streams.iter_mut().enumerate().find(|(_, entry)| entry.is_none())?;
        *entry = Some(Box::new(StreamState::new(&self.limits, Progress::Due)));
        u32::try_from(number).ok()
    }

    /// Waits for received data or the end of the data.
    pub(crate) fn poll_readable(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(state) = find(&mut self.streams, stream) else { return gone(io::ErrorKind::ConnectionReset) };
        if !state.received.is_empty() || state.peer_ended {
            return Poll::Ready(Ok(()));
        }
        if self.ended || state.peer_closed {
            return gone(io::ErrorKind::ConnectionReset);
        }
        register(&mut state.reader, cx);
        Poll::Pending
    }

    /// Takes all received data. The caller must report the data as consumed.
    pub(crate) fn take(&mut self, stream: u32) -> VecDeque<u8> {
        find(&mut self.streams, stream).map(|state| std::mem::take(&mut state.received)).unwrap_or_default()
    }

    pub(crate) fn read(&mut self, stream: u32, buffer: &mut ReadBuf<'_>) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        let bytes = state.received.len().min(buffer.remaining());
        take(&mut state.received, bytes, |part| buffer.put_slice(part));
        self.consumed(stream, bytes);
    }

    /// Grants new credit for data that was read.
    pub(crate) fn consumed(&mut self, stream: u32, bytes: usize) {
        let Some(state) = find(&mut self.streams, stream).filter(|state| !state.peer_ended) else { return };
        if let Some(grant) = state.window.consumed(bytes, &mut self.pool) {
            state.grant += grant;
            self.schedule(stream);
        }
    }

    /// Waits until data can be queued. Returns the number of bytes.
    pub(crate) fn poll_capacity(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(state) = find(&mut self.streams, stream) else { return gone(io::ErrorKind::BrokenPipe) };
        if self.ended || state.peer_closed || state.end != Progress::NotDue {
            return gone(io::ErrorKind::BrokenPipe);
        }
        match state.capacity(&self.limits) {
            0 => {
                register(&mut state.writer, cx);
                Poll::Pending
            }
            bytes => Poll::Ready(Ok(bytes)),
        }
    }

    /// Queues data, which must not exceed the capacity.
    pub(crate) fn push(&mut self, stream: u32, bytes: &[u8]) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        state.credit = state.credit.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        append(&mut state.queued, bytes, self.limits.queue_max);
        self.schedule(stream);
    }

    /// Sends an end after the queued data.
    pub(crate) fn end_stream(&mut self, stream: u32) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        if state.end == Progress::NotDue {
            state.end = Progress::Due;
            self.schedule(stream);
        }
    }

    /// Waits until the peer closes the stream before both sides have ended their data.
    pub(crate) fn poll_reset(&mut self, stream: u32, cx: &Context<'_>) -> Poll<()> {
        let Some(state) = find(&mut self.streams, stream) else { return Poll::Ready(()) };
        let both_ended = state.peer_ended && state.end != Progress::NotDue;
        if (self.ended || state.peer_closed) && !both_ended {
            return Poll::Ready(());
        }
        register(&mut state.watcher, cx);
        Poll::Pending
    }

    /// Closes a stream whose handle is dropped. If its data had not ended, this resets the stream.
    pub(crate) fn close(&mut self, stream: u32) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        state.received = VecDeque::new();
        state.window.release(&mut self.pool);
        (state.grant, state.close) = (0, Progress::Due);
        if state.end == Progress::NotDue {
            state.queued = VecDeque::new();
        }
        if state.open == Progress::Due && !state.is_ready {
            // The peer has not learned of the stream.
            (state.close, state.peer_closed) = (Progress::Sent, true);
            return self.free_if_closed(stream);
        }
        self.schedule(stream);
    }

    /// Queues a stream for its turn if it has something to send.
    fn schedule(&mut self, stream: u32) {
        let Some(state) = find(&mut self.streams, stream) else { return };
        if state.has_output() && !std::mem::replace(&mut state.is_ready, true) {
            self.ready.push_back(stream);
            if std::mem::take(&mut self.is_idle) {
                self.woken.extend(self.driver.clone());
            }
        }
    }
}

fn find(streams: &mut [Option<Box<StreamState>>], number: u32) -> Option<&mut StreamState> {
    streams.get_mut(number as usize).and_then(Option::as_deref_mut)
}

fn gone<T>(kind: io::ErrorKind) -> Poll<io::Result<T>> {
    Poll::Ready(Err(kind.into()))
}

fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

/// Appends bytes. The buffer grows by doubling, but not beyond `bytes_max`, which the bytes never exceed.
fn append(bytes: &mut VecDeque<u8>, more: &[u8], bytes_max: usize) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        let doubled = bytes.capacity().saturating_mul(2).min(bytes_max);
        bytes.reserve_exact(doubled.max(needed) - bytes.len());
    }
    bytes.extend(more);
}

/// Takes the first bytes, and frees the memory when nothing is left. Most streams are idle most of the time.
fn take(bytes: &mut VecDeque<u8>, count: usize, mut pass: impl FnMut(&[u8])) {
    let (front, back) = bytes.as_slices();
    let (front, back) = (front.get(..count).unwrap_or(front), back.get(..count.saturating_sub(front.len())));
    pass(front);
    pass(back.unwrap_or_default());
    if count == bytes.len() {
        *bytes = VecDeque::new();
    } else {
        bytes.drain(..count);
    }
}
