// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Guests that break the rules of the egress link or exhaust its limits. Such a guest harms only its own link, and the
//! host uses little memory for the guest.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use waggle::{
    domain::egress::{Egress, Network},
    network::{Gateway, Guest, ServeFault, serve},
};
use waggle_link::{Past, Records, dial};
use waggle_protocol::{
    egress::{Address, EgressRequest, FLOW_CREDIT_BYTES, FLOW_CREDIT_BYTES_MAX, FlowReply, HOST_ADDRESS, Refusal},
    handshake::Link,
};

use crate::{
    bounded,
    guest::{CLOSE, CREDIT, DATA, END, Frame, OPEN, framed, header, in_stream},
};

/// A DNS query for the address of `localhost`.
const LOCALHOST: &[u8] = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";

/// Maximum number of flows of a guest.
const FLOWS: u32 = 256;

/// The number of flows whose buffers the kernel may enlarge.
const LARGE: usize = 8;

/// Limit of the kernel's memory for all other flows of a guest, in bytes.
const KERNEL_MAX: usize = 80 * 1024 * 1024;

struct Hostile {
    socket: Records<UnixStream>,
    served: JoinHandle<ServeFault>,
}

async fn greeted() -> Hostile {
    greeted_over(UnixStream::pair().unwrap()).await
}

async fn greeted_over(pair: (UnixStream, UnixStream)) -> Hostile {
    greeted_as(guest(), pair).await
}

fn guest() -> Guest {
    let network =
        Network { egress: Egress::new("127.0.0.1".parse().unwrap(), None), on_refusal: Arc::new(|_refused| {}) };
    Guest::new(network, Arc::new(Gateway::new(None, 512)))
}

async fn greeted_as(guest: Guest, (near, socket): (UnixStream, UnixStream)) -> Hostile {
    let served = tokio::spawn(serve(near, Past::None, Arc::new(guest)));
    let socket = dial(socket, Past::None, Link::Egress).await.unwrap();
    Hostile { socket, served }
}

impl Hostile {
    /// Opens a stream with these bytes; returns false if the host has closed the link.
    async fn open(&mut self, stream: u32, bytes: &[u8]) -> bool {
        self.write(&opening(stream, bytes)).await
    }

    /// Writes bytes; returns false if the host has closed the link.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok() && self.socket.flush().await.is_ok()
    }

    /// Reads a frame. Returns the header, and the body if the frame has data.
    async fn frame(&mut self) -> (Frame, Vec<u8>) {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).await.unwrap();
        let frame = Frame::parse(header);
        let mut body = vec![0; if frame.kind == DATA { frame.value } else { 0 }];
        self.socket.read_exact(&mut body).await.unwrap();
        (frame, body)
    }

    /// Reads until all flows have begun.
    async fn all_connected(&mut self) {
        let mut connected = BTreeSet::new();
        while connected.len() < FLOWS as usize {
            let (frame, body) = self.frame().await;
            if body.starts_with(&framed(&FlowReply::Connected)) {
                connected.insert(frame.stream);
            }
        }
    }

    async fn ended(self) -> String {
        let fault = self.served.await.unwrap();
        let source = std::error::Error::source(&fault).map(ToString::to_string);
        format!("{fault}: {}", source.unwrap_or_default())
    }
}

/// Builds the frames that open a stream with these bytes.
fn opening(stream: u32, bytes: &[u8]) -> Vec<u8> {
    [&header(OPEN, 0, stream)[..], &in_stream(stream, bytes)].concat()
}

/// Returns true if the host has read everything that the guest sent, and cannot send more because the guest does not
/// read.
fn is_blocked(host_end: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(host_end, PollFlags::OUT)];
    let writable = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    ioctl_fionread(host_end).unwrap() == 0 && writable == 0
}

/// Waits until the host is blocked and accepts no more data from the servers. `written` counts the bytes that the
/// servers have sent.
async fn saturated(host_end: &OwnedFd, written: &AtomicUsize) {
    let (mut before, mut unchanged) = (0, 0);
    while unchanged < 20 {
        sleep(Duration::from_millis(10)).await;
        let now = written.load(Ordering::Relaxed);
        unchanged = if is_blocked(host_end) && now == before { unchanged + 1 } else { 0 };
        before = now;
    }
}

fn connect(port: u16) -> Vec<u8> {
    framed(&EgressRequest::Connect { address: Address::V4(HOST_ADDRESS.octets()), port })
}

#[tokio::test]
async fn ten_thousand_streams_end_the_link() {
    bounded(async {
        let mut guest = greeted().await;
        for stream in 0..10_000 {
            // Send an incomplete frame, so that the stream stays open.
            if !guest.open(stream, &[9]).await {
                break;
            }
        }
        assert_eq!(guest.ended().await, "the link ended: peer opened stream 512; must be closed and below 512");
    })
    .await;
}

#[tokio::test]
async fn invalid_request_ends_the_link() {
    for (bytes, expected) in [
        (vec![0xff; 4], "received an invalid frame"),
        (vec![0, 0, 2, 0], "received an invalid frame"),
        (framed(&FlowReply::Connected), "received an invalid frame"),
        (vec![1, 0, 0, 0, 77], "received an invalid frame"),
    ] {
        bounded(async {
            let mut guest = greeted().await;
            guest.open(1, &bytes).await;
            assert_eq!(guest.ended().await, format!("the guest sent an invalid request: {expected}"));
        })
        .await;
    }
}

#[tokio::test]
async fn data_before_a_flow_or_beyond_its_credit_ends_the_link() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut guest = greeted().await;
        for stream in 0..FLOWS / 2 {
            guest.open(stream, &connect(port)).await;
        }
        'flood: for _ in 0..32 {
            for stream in 0..FLOWS / 2 {
                if !guest.write(&in_stream(stream, &[7; 8000])).await {
                    break 'flood;
                }
            }
        }
        let ended = guest.ended().await;
        assert!(
            ended.starts_with("the link ended: peer sent 8000 bytes of data on a stream with ")
                || ended == "the guest sent an invalid request: received data before the flow began",
            "{ended}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guest_that_grants_all_credit_and_never_reads_uses_little_memory() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let written = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&written);
        let flooding = tokio::spawn(async move {
            let mut servers = tokio::task::JoinSet::new();
            loop {
                let (mut server, _) = listener.accept().await.unwrap();
                let counted = Arc::clone(&counted);
                servers.spawn(async move {
                    while let Ok(bytes) = server.write(&[7; 16 * 1024]).await {
                        counted.fetch_add(bytes, Ordering::Relaxed);
                    }
                });
            }
        });
        let pair = UnixStream::pair().unwrap();
        let host_end = pair.0.as_fd().try_clone_to_owned().unwrap();
        let mut guest = greeted_over(pair).await;
        for stream in 0..FLOWS {
            guest.open(stream, &connect(port)).await;
        }
        guest.all_connected().await;
        for stream in 0..FLOWS {
            // A larger grant would end the link.
            assert!(guest.write(&header(CREDIT, (FLOW_CREDIT_BYTES_MAX - FLOW_CREDIT_BYTES) as usize, stream)).await);
        }
        saturated(&host_end, &written).await;
        assert!(!guest.served.is_finished(), "the guest broke no rule, but its link ended");
        guest.served.abort();
        flooding.abort();
    })
    .await;
}

/// States of a connection in the kernel's table.
const SYN_SENT: &str = "02";
const TIME_WAIT: &str = "06";
/// Both sides have sent their end, and the other side has not acknowledged ours.
const LAST_ACK: &str = "09";
const CLOSING: &str = "0B";

/// Returns the state and the inode of each connection to a port of the loopback address (proc_pid_net_tcp, proc(5)).
fn connections(port: u16) -> Vec<(String, String)> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let peer = format!("0100007F:{port:04X}");
    let of_port = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let (found, state) = (fields.next()?, fields.next()?);
        Some((state.to_owned(), fields.nth(5)?.to_owned())).filter(|_| found == peer)
    });
    of_port.collect()
}

fn in_state(wanted: &str, port: u16) -> usize {
    connections(port).iter().filter(|(state, _)| state == wanted).count()
}

/// Returns the number of connections that no process has, and whose data the kernel keeps.
fn orphans(port: u16) -> usize {
    connections(port).iter().filter(|(state, inode)| inode == "0" && state != TIME_WAIT).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_to_an_address_with_many_names_use_little_memory() {
    bounded(async {
        // A server with a full queue of connections does not answer.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let port = listener.local_addr().unwrap().port();
        let guest = guest();
        for number in 0..1024 {
            let label = "x".repeat(58);
            let name = format!("n{number:04}.{label}.{label}.{label}.{label}").parse().unwrap();
            guest.grant(&name, &[Ipv4Addr::LOCALHOST.into()]);
        }
        let mut guest = greeted_as(guest, UnixStream::pair().unwrap()).await;
        for stream in 0..FLOWS {
            assert!(guest.open(stream, &connect(port)).await);
        }
        while in_state(SYN_SENT, port) < FLOWS as usize - 2 {
            sleep(Duration::from_millis(10)).await;
        }
        guest.served.abort();
    })
    .await;
}

/// Opens a flow to a server that has ended its direction and does not read. Fills the flow until the host grants no
/// more credit.
async fn full(guest: &mut Hostile, port: u16, stream: u32) {
    guest.open(stream, &connect(port)).await;
    let (mut credit, mut connected) = (FLOW_CREDIT_BYTES as usize - connect(port).len(), false);
    while let Ok((frame, _)) = timeout(Duration::from_millis(300), guest.frame()).await {
        connected |= frame.kind == DATA;
        credit += if frame.kind == CREDIT { frame.value } else { 0 };
        while connected && credit >= 4096 {
            credit -= 4096;
            assert!(guest.write(&in_stream(stream, &[7; 4096])).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_after_the_end_of_a_flow_ends_the_link() {
    for (last, expected) in [
        (END, "the link ended: peer sent 1 bytes of data on a stream with 0 bytes of credit"),
        (CLOSE, "the link ended: peer sent a frame on stream 0, which is not open"),
    ] {
        bounded(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            setsockopt(&listener, RcvBuf, &0).unwrap();
            let ending = tokio::spawn(async move {
                let mut servers = Vec::new();
                loop {
                    let (mut server, _) = listener.accept().await.unwrap();
                    server.shutdown().await.unwrap();
                    servers.push(server);
                }
            });
            let mut guest = greeted().await;
            for stream in 0..4 {
                full(&mut guest, port, stream).await;
            }
            'flood: for stream in 0..4 {
                guest.write(&header(last, 0, stream)).await;
                sleep(Duration::from_millis(100)).await;
                for _ in 0..120 {
                    if !guest.write(&in_stream(stream, &[0]).repeat(1000)).await {
                        break 'flood;
                    }
                }
            }
            assert_eq!(guest.ended().await, expected);
            ending.abort();
        })
        .await;
    }
}

/// Sends as much as the host takes on all flows, without granting it credit.
async fn fill_all(guest: &mut Hostile, port: u16) {
    const PIECE: usize = 4096;
    // Whether each flow has begun, and its credit.
    let mut flows = vec![(false, FLOW_CREDIT_BYTES as usize - connect(port).len()); FLOWS as usize];
    while let Ok((frame, body)) = timeout(Duration::from_secs(3), guest.frame()).await {
        let (connected, credit) = flows.get_mut(frame.stream as usize).unwrap();
        *credit += if frame.kind == CREDIT { frame.value } else { 0 };
        *connected |= body.starts_with(&framed(&FlowReply::Connected));
        while *connected && *credit >= PIECE {
            *credit -= PIECE;
            assert!(guest.write(&in_stream(frame.stream, &[7; PIECE])).await);
        }
    }
}

/// Returns the kernel's memory for each socket that is connected to a port, in bytes: its data in both directions, with
/// the kernel's own bookkeeping (ss(8)).
fn kernel_memory(port: u16) -> Vec<usize> {
    let listed = Command::new("ss").args(["-tmnH", &format!("dport = :{port}")]).output();
    let listed = String::from_utf8(listed.expect("failed to run ss: run ./setup test").stdout).unwrap();
    let value = |field: &str| ["r", "w"].iter().find_map(|name| field.strip_prefix(name)?.parse::<usize>().ok());
    let memories = listed.split("skmem:(").skip(1).filter_map(|rest| rest.split(')').next());
    memories.map(|fields| fields.split(',').filter_map(value).sum()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_are_full_both_ways_use_little_kernel_memory() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The servers flood and do not read.
        let flooding = tokio::spawn(async move {
            let mut servers = tokio::task::JoinSet::new();
            loop {
                let (mut server, _) = listener.accept().await.unwrap();
                servers.spawn(async move { while server.write(&[7; 16 * 1024]).await.is_ok() {} });
            }
        });
        let mut guest = greeted().await;
        for stream in 0..FLOWS {
            guest.open(stream, &connect(port)).await;
        }
        fill_all(&mut guest, port).await;
        let mut used = kernel_memory(port);
        used.sort_unstable();
        assert_eq!(used.len(), FLOWS as usize);
        used.truncate(FLOWS as usize - LARGE);
        let used: usize = used.iter().sum();
        // Less would mean that the flows were not full.
        assert!((KERNEL_MAX / 2..KERNEL_MAX).contains(&used), "{used} bytes of the kernel's memory");
        guest.served.abort();
        flooding.abort();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_flows_keep_their_places_until_the_server_has_their_data() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        setsockopt(&listener, RcvBuf, &0).unwrap();
        // The servers end their direction and do not read.
        let ending = tokio::spawn(async move {
            let mut servers = Vec::new();
            loop {
                let (mut server, _) = listener.accept().await.unwrap();
                server.shutdown().await.unwrap();
                servers.push(server);
            }
        });
        let mut guest = greeted().await;
        for stream in 0..FLOWS {
            guest.open(stream, &connect(port)).await;
        }
        guest.all_connected().await;
        let bytes = vec![7; FLOW_CREDIT_BYTES as usize - connect(port).len()];
        for stream in 0..FLOWS {
            assert!(guest.write(&[in_stream(stream, &bytes), header(END, 0, stream).to_vec()].concat()).await);
        }
        // Both directions have ended, and the kernel has data for the servers.
        while in_state(LAST_ACK, port) + in_state(CLOSING, port) < FLOWS as usize {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(200)).await;
        assert_eq!(orphans(port), 0);
        guest.open(FLOWS, &connect(port)).await;
        let refused = framed(&FlowReply::Refused { reason: Refusal::Busy });
        while !guest.frame().await.1.starts_with(&refused) {}
        guest.served.abort();
        assert!(guest.served.await.unwrap_err().is_cancelled());
        assert_eq!(orphans(port), 0, "the end of the link resets them");
        ending.abort();
    })
    .await;
}

#[tokio::test]
async fn data_after_a_query_ends_the_link() {
    bounded(async {
        let mut guest = greeted().await;
        let mut bytes = framed(&EgressRequest::Resolve { message: LOCALHOST });
        bytes.extend(b"bee");
        guest.open(1, &bytes).await;
        assert_eq!(guest.ended().await, "the guest sent an invalid request: received data before the flow began");
    })
    .await;
}

#[tokio::test]
async fn concurrent_queries_wait_for_each_other() {
    bounded(async {
        let guest = greeted().await;
        let ask = framed(&EgressRequest::Resolve { message: LOCALHOST });
        let (mut read, mut write) = tokio::io::split(guest.socket);
        let reading = tokio::spawn(async move {
            let mut bytes = Vec::new();
            let mut total = 0;
            while total < 200 * 20 {
                let read = read.read_buf(&mut bytes).await.unwrap();
                assert!(read > 0, "the link ended");
                total += read;
                bytes.clear();
            }
        });
        for stream in 0..200_u32 {
            write.write_all(&opening(stream, &ask)).await.unwrap();
            write.flush().await.unwrap();
        }
        reading.await.unwrap();
        guest.served.abort();
    })
    .await;
}
