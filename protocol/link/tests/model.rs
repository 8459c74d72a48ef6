// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Links under arbitrary operations and arbitrary frames, compared with a simple model.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

#[path = "links/begun.rs"]
mod begun;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*, sample::select};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    task::{JoinHandle, yield_now},
};
use waggle_link::{Acceptor, Breach, EGRESS_POOL_BYTES, LinkFault, Opener, Records, Stream};
use waggle_protocol::{
    CALLS_MAX, Link,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX},
};

use self::begun::begun;

/// Number of turns after which all data must have arrived.
const TURNS_MAX: usize = 200_000;

/// Number of bytes that each side writes at last: more than a stream can queue, less than its credit.
const LAST_BYTES: usize = 70_000;

/// Length of the number that the opening side sends first, so that the model recognizes the accepted stream.
const NUMBER_BYTES: usize = 4;

#[derive(Clone, Debug)]
enum Operation {
    Open,
    /// Opens a stream and drops it before its first data.
    Discard,
    Write {
        side: usize,
        stream: usize,
        bytes: usize,
    },
    Read {
        side: usize,
        stream: usize,
        bytes: usize,
    },
    End {
        side: usize,
        stream: usize,
    },
    Drop {
        side: usize,
        stream: usize,
    },
    /// Writes, ends and drops, so that the data is still queued when the handle is gone.
    Finish {
        side: usize,
        stream: usize,
        bytes: usize,
    },
    /// Lets the drivers run.
    Yield {
        turns: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let on = || (0..2_usize, 0..6_usize);
    let bytes = || prop_oneof![3 => 1..300_usize, 1 => 1..100_000_usize];
    prop_oneof![
        2 => Just(Operation::Open),
        1 => Just(Operation::Discard),
        6 => (on(), bytes()).prop_map(|((side, stream), bytes)| Operation::Write { side, stream, bytes }),
        6 => (on(), bytes()).prop_map(|((side, stream), bytes)| Operation::Read { side, stream, bytes }),
        1 => on().prop_map(|(side, stream)| Operation::End { side, stream }),
        1 => on().prop_map(|(side, stream)| Operation::Drop { side, stream }),
        2 => (on(), bytes()).prop_map(|((side, stream), bytes)| Operation::Finish { side, stream, bytes }),
        6 => (1..50_usize).prop_map(|turns| Operation::Yield { turns }),
    ]
}

/// Polls a future once.
fn once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Returns the byte at a position of the data that a side sends on a stream.
fn byte(number: usize, side: usize, at: usize) -> u8 {
    u8::try_from((number * 7 + side * 101 + at) % 251).unwrap()
}

/// One side of one stream.
#[derive(Debug, Default)]
struct End {
    /// `None` before the side has accepted the stream, and after it has dropped the stream.
    handle: Option<Stream>,
    written: usize,
    read: usize,
    ended: bool,
    dropped: bool,
    read_end: bool,
    failed: bool,
}

struct Model {
    opener: Opener,
    acceptor: Acceptor,
    /// The streams by their numbers in the model: the opening side, then the accepting side.
    streams: Vec<[End; 2]>,
    /// The streams that the accepting side knows.
    arrived: BTreeSet<usize>,
    /// Accepted streams whose number has not arrived completely.
    unknown: Vec<(Stream, Vec<u8>)>,
}

impl Model {
    async fn new(link: Link, capacity: usize) -> Self {
        let (a, b) = duplex(capacity);
        let (a, b) = begun(a, b).await;
        let (opener, acceptor) = (Opener::start(a, link), Acceptor::start(b, link));
        Self { opener, acceptor, streams: Vec::new(), arrived: BTreeSet::new(), unknown: Vec::new() }
    }

    fn open(&mut self) {
        let Poll::Ready(opened) = once(self.opener.open()) else { panic!("no stream is free") };
        let mut stream = opened.unwrap();
        let number = u32::try_from(self.streams.len()).unwrap().to_le_bytes();
        let Poll::Ready(Ok(NUMBER_BYTES)) = once(stream.write(&number)) else { panic!("a new stream has no credit") };
        self.streams.push([End { handle: Some(stream), ..End::default() }, End::default()]);
    }

    fn accept(&mut self) {
        while let Poll::Ready(accepted) = once(self.acceptor.accept()) {
            self.unknown.push((accepted.unwrap(), Vec::new()));
        }
        for (mut stream, mut number) in std::mem::take(&mut self.unknown) {
            let mut missing = vec![0; NUMBER_BYTES - number.len()];
            match once(stream.read(&mut missing)) {
                Poll::Ready(Ok(read)) => {
                    assert!(read > 0, "a stream ended before its number");
                    number.extend_from_slice(&missing[..read]);
                }
                // The opening side has dropped the stream.
                Poll::Ready(Err(_reset)) => continue,
                Poll::Pending => {}
            }
            match <[u8; NUMBER_BYTES]>::try_from(number.as_slice()) {
                Ok(number) => {
                    let number = u32::from_le_bytes(number) as usize;
                    self.streams[number][1].handle = Some(stream);
                    self.arrived.insert(number);
                }
                Err(_incomplete) => self.unknown.push((stream, number)),
            }
        }
    }

    fn write(&mut self, side: usize, number: usize, bytes: usize) {
        let [first, second] = &mut self.streams[number];
        let (this, peer) = if side == 0 { (first, second) } else { (second, first) };
        let Some(stream) = &mut this.handle else { return };
        let data: Vec<u8> = (this.written..this.written + bytes).map(|at| byte(number, side, at)).collect();
        match once(stream.write(&data)) {
            Poll::Ready(Ok(written)) => {
                assert!(!this.ended && written > 0);
                this.written += written;
                let unread = this.written - peer.read;
                assert!(unread <= FLOW_CREDIT_BYTES_MAX as usize, "{unread} bytes are unread");
            }
            Poll::Ready(Err(fault)) => {
                assert_eq!(fault.kind(), ErrorKind::BrokenPipe);
                assert!(this.ended || peer.dropped, "a write failed without a reason");
            }
            Poll::Pending => {}
        }
    }

    fn read(&mut self, side: usize, number: usize, bytes: usize) {
        let [first, second] = &mut self.streams[number];
        let (this, peer) = if side == 0 { (first, second) } else { (second, first) };
        let Some(stream) = &mut this.handle else { return };
        let mut data = vec![0; bytes];
        match once(stream.read(&mut data)) {
            Poll::Ready(Ok(0)) => {
                assert!(peer.ended && this.read == peer.written, "the data ended early");
                this.read_end = true;
            }
            Poll::Ready(Ok(read)) => {
                assert!(
                    data[..read].iter().enumerate().all(|(at, found)| *found == byte(number, 1 - side, this.read + at))
                );
                this.read += read;
                assert!(this.read <= peer.written);
            }
            Poll::Ready(Err(fault)) => {
                assert_eq!(fault.kind(), ErrorKind::ConnectionReset);
                assert!(peer.dropped && !peer.ended, "a read failed without a reason");
                this.failed = true;
            }
            Poll::Pending => {}
        }
    }

    fn end(&mut self, side: usize, number: usize) {
        let this = &mut self.streams[number][side];
        if let Some(stream) = &mut this.handle {
            assert!(once(stream.shutdown()).is_ready());
            this.ended = true;
        }
    }

    fn drop(&mut self, side: usize, number: usize) {
        let this = &mut self.streams[number][side];
        this.dropped |= this.handle.take().is_some();
    }

    fn apply(&mut self, operation: &Operation) {
        let count = self.streams.len();
        match *operation {
            Operation::Open => self.open(),
            Operation::Discard => assert!(once(self.opener.open()).is_ready()),
            Operation::Write { side, stream, bytes } if stream < count => self.write(side, stream, bytes),
            Operation::Read { side, stream, bytes } if stream < count => self.read(side, stream, bytes),
            Operation::End { side, stream } if stream < count => self.end(side, stream),
            Operation::Drop { side, stream } if stream < count => self.drop(side, stream),
            Operation::Finish { side, stream, bytes } if stream < count => {
                self.write(side, stream, bytes);
                self.end(side, stream);
                self.drop(side, stream);
            }
            // The drivers run outside of the model, or the stream does not exist.
            Operation::Yield { .. }
            | Operation::Write { .. }
            | Operation::Read { .. }
            | Operation::End { .. }
            | Operation::Drop { .. }
            | Operation::Finish { .. } => {}
        }
    }

    /// Lets a task for each side of each stream write some more, end its data, and read everything. Then checks that
    /// all data and all resets have arrived, and that all streams and all credit are free again.
    async fn settle(mut self, streams_max: usize) {
        let mut tasks: BTreeMap<(usize, usize), JoinHandle<End>> = BTreeMap::new();
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "the link is stuck");
            self.accept();
            for (number, ends) in self.streams.iter_mut().enumerate() {
                for (side, end) in ends.iter_mut().enumerate() {
                    if end.handle.is_some() {
                        tasks.insert((number, side), tokio::spawn(finish(number, side, std::mem::take(end))));
                    }
                }
            }
            let mut ends = self.streams.iter().enumerate();
            let have_arrived =
                ends.all(|(number, [opened, _])| self.arrived.contains(&number) || (opened.dropped && !opened.ended));
            if have_arrived && self.unknown.is_empty() && tasks.values().all(JoinHandle::is_finished) {
                break;
            }
            yield_now().await;
        }
        for ((number, side), task) in tasks {
            self.streams[number][side] = task.await.unwrap();
        }
        for ends in &self.streams {
            for (this, peer) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                assert!(!this.read_end || (peer.ended && this.read == peer.written), "{this:?} {peer:?}");
                assert!(!this.failed || (peer.dropped && !peer.ended), "{this:?} {peer:?}");
            }
        }
        self.streams.clear();
        let pools = [self.opener.pool_left(), self.acceptor.pool_left()];
        let (mut free, mut turn) = (Vec::new(), 0);
        while free.len() < streams_max {
            assert!(turn < TURNS_MAX, "only {} streams became free", free.len());
            while let Poll::Ready(accepted) = once(self.acceptor.accept()) {
                drop(accepted.unwrap());
            }
            while let Poll::Ready(opened) = once(self.opener.open()) {
                free.push(opened.unwrap());
            }
            turn += 1;
            yield_now().await;
        }
        assert!(pools.iter().all(|left| [0, EGRESS_POOL_BYTES].contains(left)), "{pools:?}");
        assert!(once(self.opener.ended()).is_pending());
    }
}

/// Writes some more data, ends it, and reads the peer's data to its end.
async fn finish(number: usize, side: usize, mut this: End) -> End {
    let Some(stream) = this.handle.take() else { return this };
    let (mut reading, mut writing) = split(stream);
    let written = this.written..this.written + if this.ended { 0 } else { LAST_BYTES };
    let writes = async {
        let data: Vec<u8> = written.clone().map(|at| byte(number, side, at)).collect();
        let is_written = writing.write_all(&data).await.is_ok();
        drop(writing.shutdown().await);
        is_written
    };
    let reads = async {
        let (mut bytes, mut piece) = (0, vec![0; 5000]);
        loop {
            match reading.read(&mut piece).await {
                Ok(0) => return (bytes, false),
                Ok(read) => {
                    let expected = |at: usize| byte(number, 1 - side, this.read + bytes + at);
                    assert!(piece[..read].iter().enumerate().all(|(at, found)| *found == expected(at)));
                    bytes += read;
                }
                Err(_reset) => return (bytes, true),
            }
        }
    };
    let (is_written, (bytes, failed)) = tokio::join!(writes, reads);
    this.read += bytes;
    (this.ended, this.failed, this.read_end) = (this.ended || is_written, failed, !failed);
    this.written = if is_written { written.end } else { this.written };
    this
}

/// A frame from a peer that may break the rules.
#[derive(Clone, Debug)]
struct Sent {
    kind: u8,
    value: u32,
    stream: u32,
}

/// Frames that mostly keep the rules, on streams that are mostly open.
fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let stream = prop_oneof![100 => 0..4_u32, 1 => 510..514_u32, 1 => any::<u32>()];
    let frame = prop_oneof![
        50 => (1..1500_u32).prop_map(|bytes| (2, bytes)),
        20 => (2048..40_000_u32).prop_map(|bytes| (3, bytes)),
        3 => Just((4, 0)),
        3 => Just((5, 0)),
        1 => Just((1, 0)),
        1 => (any::<u8>(), 0..1_u32 << 24),
    ];
    let opens = (0..4).map(|stream| Sent { kind: 1, value: 0, stream });
    let frames = vec((frame, stream).prop_map(|((kind, value), stream)| Sent { kind, value, stream }), 1..60);
    frames.prop_map(move |frames| opens.clone().chain(frames).collect())
}

impl Sent {
    fn header(&self) -> [u8; 8] {
        let ([v0, v1, v2, _], [s0, s1, s2, s3]) = (self.value.to_le_bytes(), self.stream.to_le_bytes());
        [self.kind, v0, v1, v2, s0, s1, s2, s3]
    }
}

/// The rules for an acceptor that never reads, never writes and keeps all streams.
#[derive(Default)]
struct Rules(BTreeMap<u32, Rule>);

struct Rule {
    received: u32,
    credit: u32,
    ended: bool,
    closed: bool,
}

impl Rules {
    fn check(&mut self, sent: &Sent) -> Result<(), Breach> {
        let (value, stream) = (sent.value, sent.stream);
        let valid = match sent.kind {
            1 | 4 | 5 => value == 0,
            2 => (1..=65_536).contains(&value),
            3 => value >= 2048,
            _ => false,
        };
        if !valid {
            return Err(Breach::Header { header: sent.header() });
        }
        if sent.kind == 1 {
            if self.0.contains_key(&stream) || stream as usize >= EGRESS_STREAMS_MAX {
                return Err(Breach::Opened { stream, streams_max: EGRESS_STREAMS_MAX });
            }
            self.0.insert(stream, Rule { received: 0, credit: FLOW_CREDIT_BYTES, ended: false, closed: false });
            return Ok(());
        }
        let rule = self.0.get_mut(&stream).filter(|rule| !rule.closed).ok_or(Breach::NotOpen { stream })?;
        match sent.kind {
            2 => {
                let credit = if rule.ended { 0 } else { FLOW_CREDIT_BYTES - rule.received };
                if value > credit {
                    return Err(Breach::Data { bytes: value, credit });
                }
                rule.received += value;
            }
            3 if rule.credit + value > FLOW_CREDIT_BYTES_MAX => {
                return Err(Breach::Credit { bytes: value, credit: rule.credit, credit_max: FLOW_CREDIT_BYTES_MAX });
            }
            3 => rule.credit += value,
            4 if rule.ended => return Err(Breach::Ended { stream }),
            4 => rule.ended = true,
            _ => rule.closed = true,
        }
        Ok(())
    }
}

/// Sends the frames in pieces to an acceptor that keeps all streams. Returns the breach that ended the link, if any.
async fn accept_all(
    mut peer: Records<DuplexStream>,
    mut acceptor: Acceptor,
    bytes: &[u8],
    piece: usize,
) -> Option<Breach> {
    let accepting = tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            match acceptor.accept().await {
                Ok(stream) => streams.push(stream),
                Err(fault) => return fault,
            }
        }
    });
    for piece in bytes.chunks(piece) {
        if peer.write_all(piece).await.is_err() || peer.flush().await.is_err() {
            break;
        }
    }
    // The peer reads what the link has sent, up to the link's end.
    drop(peer.shutdown().await);
    match accepting.await.unwrap() {
        LinkFault::Breach { breach } => Some(breach),
        LinkFault::Closed => None,
        other @ LinkFault::Failed { .. } => panic!("{other}"),
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn streams_carry_all_data_ends_and_resets(
        operations in vec(operation(), 1..100),
        capacity in select(vec![300_usize, 5000, 65_536]),
        (link, streams_max) in select(vec![(Link::Egress, EGRESS_STREAMS_MAX), (Link::Call, 2 * CALLS_MAX)]),
    ) {
        run(async {
            let mut model = Model::new(link, capacity).await;
            for operation in &operations {
                model.apply(operation);
                if let Operation::Yield { turns } = operation {
                    for _ in 0..*turns {
                        yield_now().await;
                    }
                }
                model.accept();
            }
            model.settle(streams_max).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn first_broken_rule_ends_the_link(frames in sent(), piece in 1..3000_usize) {
        let mut rules = Rules::default();
        let expected = frames.iter().find_map(|frame| rules.check(frame).err());
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend(frame.header());
            if frame.kind == 2 {
                bytes.resize(bytes.len() + frame.value.min(65_536) as usize, 0);
            }
        }
        let found = run(async {
            let (a, b) = duplex(4096);
            let (a, b) = begun(a, b).await;
            accept_all(a, Acceptor::start(b, Link::Egress), &bytes, piece).await
        });
        prop_assert_eq!(found, expected);
    }
}
