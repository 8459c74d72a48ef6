// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host's side of the egress link with an honest guest, over real sockets and without a machine.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed step is a failed test")]

#[path = "machines/log.rs"]
mod log;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use waggle::{
    domain::egress::{Egress, Network},
    network::{Gateway, Guest, Proxy, Rates, ServeFault, serve},
};
use waggle_link::{FrameReader, FrameWriter, Opener, Past, Stream, dial};
use waggle_protocol::{
    Link,
    egress::{Address, EgressRequest, FlowReply, HOST_ADDRESS, Refusal},
};

/// Timeout of a stuck test.
const STUCK: Duration = Duration::from_secs(30);

/// The type of a record with an IPv6 address.
const AAAA: u8 = 28;

/// The guest's side of a link, and the refusals that the host reports.
struct Rig {
    link: Opener,
    served: JoinHandle<ServeFault>,
    refused: Arc<Mutex<Vec<String>>>,
}

async fn rig(policy: &str) -> Rig {
    rig_by(policy, Gateway::new(None, 512)).await
}

async fn rig_by(policy: &str, gateway: Gateway) -> Rig {
    let refused: Arc<Mutex<Vec<String>>> = Arc::default();
    let reported = Arc::clone(&refused);
    let network = Network {
        egress: Egress::new(policy.parse().unwrap(), None),
        on_refusal: Arc::new(move |refused| reported.lock().unwrap().push(refused.to_string())),
    };
    let (near, far) = UnixStream::pair().unwrap();
    let served = tokio::spawn(serve(near, Past::None, Arc::new(Guest::new(network, Arc::new(gateway)))));
    let far = dial(far, Past::None, Link::Egress).await.unwrap();
    Rig { link: Opener::start(far, Link::Egress), served, refused }
}

impl Rig {
    async fn ask(&self, request: &EgressRequest<'_>) -> Stream {
        let mut stream = self.link.open().await.unwrap();
        FrameWriter::new(&mut stream).send(request).await.unwrap();
        stream
    }

    /// Opens a flow, or returns the refusal.
    async fn connect(&self, address: IpAddr, port: u16) -> Result<Stream, Refusal> {
        let mut stream = self.ask(&EgressRequest::Connect { address: Address::from(address), port }).await;
        let mut reader = FrameReader::new(&mut stream);
        match timeout(STUCK, reader.receive::<FlowReply<'_>>()).await.unwrap().unwrap().unwrap() {
            FlowReply::Connected => Ok(stream),
            FlowReply::Refused { reason } => Err(reason),
            FlowReply::Answer { .. } => panic!("received a DNS answer to a connect request"),
        }
    }

    async fn refusal(&self, address: &str, port: u16) -> Option<Refusal> {
        self.connect(address.parse().unwrap(), port).await.err()
    }

    /// Resolves a name. Returns the response code and the IPv4 addresses of the answer.
    async fn resolve(&self, name: &str) -> (u8, Vec<IpAddr>) {
        let (code, records) = self.query(name, 1).await;
        (code, records.chunks_exact(16).map(|record| <[u8; 4]>::try_from(&record[12..]).unwrap().into()).collect())
    }

    /// Asks for records of a name. Returns the response code and the encoded records of the answer.
    async fn query(&self, name: &str, kind: u8) -> (u8, Vec<u8>) {
        let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend([0, 0, kind, 0, 1]);
        let mut stream = self.ask(&EgressRequest::Resolve { message: &message }).await;
        let mut reader = FrameReader::new(&mut stream);
        match timeout(STUCK, reader.receive::<FlowReply<'_>>()).await.unwrap().unwrap().unwrap() {
            FlowReply::Answer { message: answer } => (answer[3] & 15, answer[message.len()..].to_vec()),
            other @ (FlowReply::Connected | FlowReply::Refused { .. }) => panic!("expected an answer, got {other:?}"),
        }
    }

    fn refusals(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Sends a question, ends the sending direction, and returns the whole response.
async fn exchange(stream: &mut Stream, question: &[u8]) -> Vec<u8> {
    stream.write_all(question).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(STUCK, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn answer_one(listener: &TcpListener) -> Vec<u8> {
    let (mut server, _) = listener.accept().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    question
}

#[tokio::test]
async fn rule_opens_one_port_of_the_host_loopback() {
    let ((listener, port), (_other, shut)) = (listen().await, listen().await);
    let rig = rig(&format!("127.0.0.1:{port}")).await;
    let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
    let (question, answer) = tokio::join!(answer_one(&listener), exchange(&mut flow, b"question"));
    assert_eq!((question.as_slice(), answer.as_slice()), (&b"question"[..], &b"answer"[..]));
    assert_eq!(rig.refusal("10.0.77.1", shut).await, Some(Refusal::Policy));
    assert_eq!(rig.refusals(), [format!("127.0.0.1 port {shut}")]);
}

#[tokio::test]
async fn rule_for_the_host_loopback_also_reaches_a_server_on_its_ipv6_address() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for policy in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let rig = rig(&policy).await;
        let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
        let (_, answer) = tokio::join!(answer_one(&listener), exchange(&mut flow, b"question"));
        assert_eq!(answer, b"answer", "{policy}");
        // In the guest, the address itself means the guest.
        assert_eq!(rig.refusal("::1", port).await, Some(Refusal::Policy), "{policy}");
    }
    let narrow = rig(&format!("127.0.0.1:{port}, deny ::1")).await;
    assert_eq!(narrow.refusal("10.0.77.1", port).await, Some(Refusal::Refused));
    // The IPv4 address has precedence.
    let first = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let rig = rig(&format!("127.0.0.1:{port}")).await;
    let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
    tokio::join!(answer_one(&first), exchange(&mut flow, b"question"));
}

#[tokio::test]
async fn public_policy_reaches_nothing_near_the_host() {
    let (_listener, port) = listen().await;
    let rig = rig("public").await;
    let mut own: Vec<String> = nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|own| own.ip().to_string()))
        .collect();
    own.extend(
        [
            "10.0.77.1",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fd00:ec2::254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "10.0.0.1",
            "192.168.0.1",
            "172.16.0.1",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
        ]
        .map(str::to_owned),
    );
    for address in &own {
        for port in [port, 53, 80] {
            assert_eq!(rig.refusal(address, port).await, Some(Refusal::Policy), "{address} port {port}");
        }
    }
    assert_eq!(rig.refusals().len(), 3 * own.len());
}

#[tokio::test]
async fn rule_for_all_addresses_excludes_the_own_addresses_of_a_guest() {
    let (_listener, port) = listen().await;
    let rig = rig("deny 127.0.0.0/8, 0.0.0.0/0, ::/0").await;
    for address in ["10.0.77.1", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "127.0.0.1", "::ffff:0.0.0.0"] {
        assert_eq!(rig.refusal(address, port).await, Some(Refusal::Policy), "{address}");
    }
}

#[tokio::test]
async fn name_resolves_to_loopback_only_if_the_address_is_allowed() {
    for policy in ["public", "localhost", "*.invalid", "10.0.0.0/8"] {
        let rig = rig(policy).await;
        assert_eq!(rig.resolve("localhost").await, (3, vec![]), "{policy}");
        assert_eq!(rig.refusals(), ["localhost"], "{policy}");
    }
    let (listener, port) = listen().await;
    let rig = rig(&format!("127.0.0.1:{port}")).await;
    assert_eq!(rig.resolve("LOCALHOST").await, (0, vec![HOST_ADDRESS.into()]));
    let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
    let (_, answer) = tokio::join!(answer_one(&listener), exchange(&mut flow, b"question"));
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn unknown_name_is_reported_and_a_denied_one_is_not_looked_up() {
    let rig = rig("nobody.invalid, 192.0.2.0/24").await;
    let (code, addresses) = rig.resolve("nobody.invalid").await;
    // A host without a name server reports a failure.
    assert!(matches!(code, 2 | 3) && addresses.is_empty(), "{code}");
    assert_eq!(rig.refusals(), [""; 0]);
    let narrow = self::rig("index.example").await;
    assert_eq!(narrow.resolve("secret.evil.invalid").await, (3, vec![]));
    // The lookups of both families are one refusal.
    assert_eq!(narrow.query("secret.evil.invalid", AAAA).await, (3, vec![]));
    assert_eq!(narrow.refusals(), ["secret.evil.invalid"]);
}

#[tokio::test]
async fn other_records_are_asked_for_only_as_far_as_the_policy_allows() {
    const A: u8 = 1;
    const PTR: u8 = 12;
    const TXT: u8 = 16;
    const ANY: u8 = 255;
    let rig = rig("index.example, deny *.example, 192.0.2.0/24").await;
    for (name, kind) in [
        ("secret.example", TXT),
        ("_a._b._c.index.example", TXT),
        ("1.2.0.10.in-addr.arpa", PTR),
        ("1.2.0.10.in-addr.arpa", TXT),
        ("254.169.254.169.in-addr.arpa", PTR),
    ] {
        assert_eq!(rig.query(name, kind).await, (3, vec![]), "{name}");
    }
    // NXDOMAIN for the name of a network would mean that none of its addresses has a name.
    assert_eq!(rig.query("2.0.192.in-addr.arpa", PTR).await, (5, vec![]));
    assert_eq!(rig.query("1.2.0.192.in-addr.arpa", A).await, (5, vec![]));
    let expected = [
        "secret.example",
        "_a._b._c.index.example",
        "1.2.0.10.in-addr.arpa",
        "254.169.254.169.in-addr.arpa",
        "2.0.192.in-addr.arpa",
        "1.2.0.192.in-addr.arpa",
    ];
    assert_eq!(rig.refusals(), expected);
    // The guest's own addresses have no names, and lookups of them are not counted as refusals.
    for own in ["1.77.0.10.in-addr.arpa", "2.77.0.10.in-addr.arpa", "1.0.0.127.in-addr.arpa"] {
        assert_eq!(rig.query(own, PTR).await, (3, vec![]), "{own}");
    }
    assert_eq!(rig.query("index.example", ANY).await, (4, vec![]));
    assert_eq!(rig.refusals().len(), 6);
    let denied = self::rig("deny *.in-addr.arpa, public").await;
    assert_eq!(denied.query("1.1.1.1.in-addr.arpa", PTR).await, (3, vec![]));
    assert_eq!(denied.refusals(), ["1.1.1.1.in-addr.arpa"]);
}

#[tokio::test]
async fn name_with_an_allowed_address_exists_for_lookups_of_the_other_family() {
    let rig = rig("127.0.0.1").await;
    // The host knows this name from its hosts file, with an address of each family.
    assert_eq!(rig.resolve("localhost").await, (0, vec![HOST_ADDRESS.into()]));
    assert_eq!(rig.query("localhost", AAAA).await, (0, vec![]));
    assert_eq!(rig.refusals(), [""; 0]);
}

#[tokio::test]
async fn refused_connection_differs_from_a_denied_one() {
    let (listener, port) = listen().await;
    drop(listener);
    let rig = rig("127.0.0.1").await;
    assert_eq!(rig.refusal("10.0.77.1", port).await, Some(Refusal::Refused));
    assert_eq!(rig.refusal("10.0.77.1", 0).await, Some(Refusal::Policy));
}

#[tokio::test]
async fn end_of_a_machine_resets_its_flows() {
    let (listener, port) = listen().await;
    let rig = rig("127.0.0.1").await;
    let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    flow.write_all(b"half").await.unwrap();
    server.read_exact(&mut [0; 4]).await.unwrap();
    rig.served.abort();
    let fault = timeout(STUCK, server.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(fault.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Returns the kernel's timer of a connection to `port`, and the remaining time of the timer (`proc_pid_net_tcp`,
/// proc(5)).
fn timer_of(port: u16) -> Option<(String, u64)> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let line = table.lines().find(|line| line.split_whitespace().nth(2) == Some(&format!("0100007F:{port:04X}")))?;
    let (kind, ticks) = line.split_whitespace().nth(5)?.split_once(':')?;
    Some((kind.to_owned(), u64::from_str_radix(ticks, 16).unwrap()))
}

#[tokio::test]
async fn silent_peer_is_probed_within_a_minute() {
    const KEEPALIVE: &str = "02";
    let (listener, port) = listen().await;
    let rig = rig("127.0.0.1").await;
    let mut flow = rig.connect(HOST_ADDRESS.into(), port).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    flow.write_all(b"bee").await.unwrap();
    server.read_exact(&mut [0; 3]).await.unwrap();
    // Once everything is acknowledged, only the keepalive timer is left.
    let silence = async {
        loop {
            match timer_of(port) {
                Some((kind, ticks)) if kind == KEEPALIVE => break ticks,
                Some(_) | None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let ticks = timeout(STUCK, silence).await.unwrap();
    // The kernel reports hundredths of a second.
    assert!((1..=60 * 100).contains(&ticks), "{ticks}");
}

#[tokio::test]
async fn flows_beyond_the_limit_are_refused_as_busy() {
    let (_listener, port) = listen().await;
    let rig = rig_by("127.0.0.1", Gateway::new(None, 2)).await;
    let mut flows = Vec::new();
    for _ in 0..2 {
        flows.push(rig.connect(HOST_ADDRESS.into(), port).await.unwrap());
    }
    assert_eq!(rig.refusal("10.0.77.1", port).await, Some(Refusal::Busy));
    flows.clear();
    timeout(STUCK, async { while rig.refusal("10.0.77.1", port).await.is_some() {} }).await.unwrap();
}

/// Returns the number of tokens that a rate of 10 per second gives: 50 at once, and one every 100 ms for 2 s. On a busy
/// machine some requests begin later, and get tokens that have become due meanwhile.
fn admitted_within(time: Duration) -> RangeInclusive<usize> {
    70..=70 + usize::try_from(time.as_millis() / 100).unwrap()
}

#[tokio::test]
async fn flows_beyond_the_rate_wait_for_a_moment_and_are_then_refused() {
    let (_listener, port) = listen().await;
    let rates = Rates { flows: 10, lookups: 100 };
    let rig = rig_by("127.0.0.1", Gateway::new(None, 512).with_rates(rates)).await;
    let start = Instant::now();
    let connects = join_all((0..250).map(async |_| rig.connect(HOST_ADDRESS.into(), port).await.err())).await;
    let after = start.elapsed();
    let connected = connects.iter().filter(|refusal| refusal.is_none()).count();
    assert!(admitted_within(after).contains(&connected), "{connected} in {after:?}");
    assert!((Duration::from_millis(1900)..Duration::from_secs(20)).contains(&after), "{after:?}");
    assert!(connects.iter().flatten().all(|refusal| *refusal == Refusal::Busy), "{connects:?}");
    let refusals = rig.refusals();
    assert_eq!(refusals.len(), 250 - connected);
    assert!(refusals.iter().all(|refusal| refusal == "a connection beyond the rate of 10 per second"), "{refusals:?}");
    // Denied flows need no token.
    assert_eq!(rig.refusal("192.0.2.1", port).await, Some(Refusal::Policy));
}

#[tokio::test]
async fn lookups_beyond_the_rate_wait_for_a_moment_and_then_fail() {
    let rates = Rates { flows: 100, lookups: 10 };
    let rig = rig_by("127.0.0.1", Gateway::new(None, 512).with_rates(rates)).await;
    let start = Instant::now();
    let answers = join_all((0..250).map(async |_| rig.resolve("localhost").await)).await;
    let after = start.elapsed();
    let resolved = answers.iter().filter(|answer| **answer == (0, vec![HOST_ADDRESS.into()])).count();
    assert!(admitted_within(after).contains(&resolved), "{resolved} in {after:?}");
    assert_eq!(answers.iter().filter(|answer| **answer == (2, vec![])).count(), 250 - resolved);
    let refusals = rig.refusals();
    assert_eq!(refusals.len(), 250 - resolved);
    assert!(refusals.iter().all(|refusal| refusal == "a lookup beyond the rate of 10 per second"), "{refusals:?}");
}

/// Returns the number of bytes that the host accepts for a server that does not read.
async fn taken(flow: &mut Stream) -> usize {
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_millis(500), flow.write(&[7; 4096])).await {
        taken += written.unwrap();
    }
    taken
}

#[tokio::test]
async fn ninth_flow_of_a_machine_gets_small_buffers() {
    let (_listener, port) = listen().await;
    let rig = rig("127.0.0.1").await;
    let mut flows = Vec::new();
    for _ in 0..9 {
        flows.push(rig.connect(HOST_ADDRESS.into(), port).await.unwrap());
    }
    let (first, last) = (taken(&mut flows[0]).await, taken(&mut flows[8]).await);
    assert!(first > 1024 * 1024 && last < 1024 * 1024, "{first}, {last}");
    flows.remove(0);
    // When a flow ends, another flow can use its permit for large buffers.
    let next = async { while taken(&mut rig.connect(HOST_ADDRESS.into(), port).await.unwrap()).await < 1024 * 1024 {} };
    timeout(STUCK, next).await.unwrap();
}

/// Accepts one connection as a proxy. Returns the request and the connection.
async fn proxied(listener: &TcpListener, answer: &str) -> (String, TcpStream) {
    let (mut proxy, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(proxy.read_u8().await.unwrap());
    }
    proxy.write_all(answer.as_bytes()).await.unwrap();
    (String::from_utf8(head).unwrap(), proxy)
}

#[tokio::test]
async fn proxy_connects_and_carries_the_flow() {
    let (listener, port) = listen().await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let proxy: Proxy = format!("http://bee:honey@{address}").parse().unwrap();
    let rig = rig_by("192.0.2.0/24", Gateway::new(Some(proxy), 512)).await;
    let through = async {
        let (head, mut proxy) = proxied(&listener, "HTTP/1.1 200 OK\r\nX: y\r\n\r\nbanner").await;
        proxy.read_exact(&mut [0; 8]).await.unwrap();
        head
    };
    let flow = async {
        let mut flow = rig.connect([192, 0, 2, 7].into(), 443).await.unwrap();
        exchange(&mut flow, b"question").await
    };
    let (head, banner) = tokio::join!(through, flow);
    let expected = "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\nProxy-Authorization: Basic YmVlOmhvbmV5";
    assert_eq!(head, format!("{expected}\r\n\r\n"));
    assert_eq!(banner, b"banner");
    let (_, refused) = tokio::join!(proxied(&listener, "HTTP/1.1 403 No\r\n\r\n"), rig.refusal("192.0.2.7", 443));
    assert_eq!(refused, Some(Refusal::Refused));
    assert_eq!(rig.refusal("198.51.100.1", 443).await, Some(Refusal::Policy));
}

#[tokio::test]
async fn logs_never_contain_the_proxy_password() {
    let written = log::capture(tracing::Level::TRACE);
    let (listener, port) = listen().await;
    let proxy: Proxy = format!("http://bee:honey@127.0.0.1:{port}").parse().unwrap();
    let rig = rig_by("192.0.2.0/24", Gateway::new(Some(proxy.clone()), 512)).await;
    for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 407 No\r\n\r\n", "nonsense\r\n\r\n"] {
        let (through, _flow) = tokio::join!(proxied(&listener, answer), rig.connect([192, 0, 2, 7].into(), 443));
        assert!(through.0.contains("Basic YmVlOmhvbmV5\r\n"), "{}", through.0);
    }
    tracing::trace!(?proxy, "all flows have ended");
    let text = written.text();
    assert!(text.contains("TRACE") && text.contains("all flows have ended"), "{text}");
    assert!(!text.contains("honey") && !text.contains("YmVlOmhvbmV5"), "{text}");
}
