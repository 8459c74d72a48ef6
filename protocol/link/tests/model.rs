// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Links under arbitrary operations and arbitrary frames, compared with a simple model.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken stream is a failed test")]

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*, sample::select};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::yield_now,
};
use waggle_link::{Acceptor, Breach, EGRESS_POOL_BYTES, LinkFault, Opener, Stream};
use waggle_protocol::{
    Link,
    egress::{EGRESS_STREAMS_MAX, FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX},
};

/// Number of turns after which all data must have arrived.
const TURNS_MAX: usize = 200_000;

/// Length of the number that the opening side sends first, so that the model recognizes the accepted stream.
const NUMBER_BYTES: usize = 4;

#[derive(Clone, Debug)]
enum Operation {
    Open,
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
    /// Lets the drivers run.
    Yield {
        turns: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let on = || (0..2_usize, 0..8_usize);
    let bytes = || prop_oneof![3 => 1..300_usize, 1 => 1..100_000_usize];
    prop_oneof![
        2 => Just(Operation::Open),
        6 => (on(), bytes()).prop_map(|((side, stream), bytes)| Operation::Write { side, stream, bytes }),
        6 => (on(), bytes()).prop_map(|((side, stream), bytes)| Operation::Read { side, stream, bytes }),
        1 => on().prop_map(|(side, stream)| Operation::End { side, stream }),
        1 => on().prop_map(|(side, stream)| Operation::Drop { side, stream }),
        6 => (1..50_usize).prop_map(|turns| Operation::Yield { turns }),
    ]
}

/// Polls a future once.
fn once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Returns the byte at a position of the data that a side sends on a stream.
fn byte(number: usize, side: usize, at: usize) -> u8 {
    ((number * 7 + side * 101 + at) % 251) as u8
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
    /// Accepted streams whose number has not arrived completely.
    unknown: Vec<(Stream, Vec<u8>)>,
}

impl Model {
    fn new(capacity: usize) -> Self {
        let (a, b) = duplex(capacity);
        let (opener, acceptor) = (Opener::start(a, Link::Egress), Acceptor::start(b, Link::Egress));
        Self { opener, acceptor, streams: Vec::new(), unknown: Vec::new() }
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
                Ok(number) => self.streams[u32::from_le_bytes(number) as usize][1].handle = Some(stream),
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
            Operation::Write { side, stream, bytes } if stream < count => self.write(side, stream, bytes),
            Operation::Read { side, stream, bytes } if stream < count => self.read(side, stream, bytes),
            Operation::End { side, stream } if stream < count => self.end(side, stream),
            Operation::Drop { side, stream } if stream < count => self.drop(side, stream),
            _ => {}
        }
    }

    /// Ends all streams, reads everything, and checks that all data and all resets have arrived.
    async fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "the link is stuck");
            self.accept();
            let mut is_settled = self.unknown.is_empty();
            for number in 0..self.streams.len() {
                for side in 0..2 {
                    self.end(side, number);
                    self.read(side, number, 10_000);
                    let this = &self.streams[number][side];
                    is_settled &= this.handle.is_none() || this.read_end || this.failed;
                }
            }
            if is_settled {
                break;
            }
            yield_now().await;
        }
        for number in 0..self.streams.len() {
            for side in 0..2 {
                self.drop(side, number);
            }
        }
        let is_done = |model: &Self| [model.opener.pool_left(), model.acceptor.pool_left()] == [EGRESS_POOL_BYTES; 2];
        let mut free = Vec::new();
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "streams or credit did not become free: {} streams", free.len());
            self.accept();
            self.unknown.clear();
            while let Poll::Ready(opened) = once(self.opener.open()) {
                free.push(opened.unwrap());
            }
            if free.len() == EGRESS_STREAMS_MAX && is_done(self) {
                break;
            }
            yield_now().await;
        }
        assert!(once(self.opener.ended()).is_pending());
    }
}

/// A frame from a peer that may break the rules.
#[derive(Clone, Debug)]
struct Sent {
    kind: u8,
    value: u32,
    stream: u32,
}

fn sent() -> impl Strategy<Value = Sent> {
    let stream = prop_oneof![20 => 0..4_u32, 1 => 510..514_u32, 1 => any::<u32>()];
    let frame = prop_oneof![
        4 => Just((1, 0)),
        8 => (1..5000_u32).prop_map(|bytes| (2, bytes)),
        4 => (2048..60_000_u32).prop_map(|bytes| (3, bytes)),
        2 => Just((4, 0)),
        2 => Just((5, 0)),
        1 => (any::<u8>(), 0..1_u32 << 24),
    ];
    (frame, stream).prop_map(|((kind, value), stream)| Sent { kind, value, stream })
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
async fn accept_all(mut peer: DuplexStream, mut acceptor: Acceptor, bytes: &[u8], piece: usize) -> Option<Breach> {
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
        if peer.write_all(piece).await.is_err() {
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
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn streams_carry_all_data_ends_and_resets(
        operations in vec(operation(), 1..120),
        capacity in select(vec![13_usize, 200, 5000, 65_536]),
    ) {
        run(async {
            let mut model = Model::new(capacity);
            for operation in &operations {
                model.apply(operation);
                if let Operation::Yield { turns } = operation {
                    for _ in 0..*turns {
                        yield_now().await;
                    }
                }
                model.accept();
            }
            model.settle().await;
        });
    }

    #[test]
    fn first_broken_rule_ends_the_link(frames in vec(sent(), 1..40), piece in 1..3000_usize) {
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
            accept_all(a, Acceptor::start(b, Link::Egress), &bytes, piece).await
        });
        prop_assert_eq!(found, expected);
    }
}
