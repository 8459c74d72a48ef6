// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Configurations of name servers, and servers that do not answer as they should.

use super::{
    super::{dns, records::Target},
    *,
};

/// A query for the texts of `bee.example`.
const QUERY: &[u8] = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x03bee\x07example\0\0\x10\0\x01";

/// Timeout of one attempt in the tests of silent servers.
const SHORT: Duration = Duration::from_millis(200);

/// The whole time of tests in which it does not matter.
const LONG: Duration = Duration::from_secs(30);

fn question() -> Question {
    dns::read(QUERY).unwrap()
}

/// A response to a query, with a code and one text.
fn response(query: &[u8], code: u8, text: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[3] = code;
    message[7] = 1;
    message.extend(b"\xc0\x0c\0\x10\0\x01\0\0\0\x05\0\x02\x01");
    message.push(text);
    message
}

fn truncated(query: &[u8]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x82;
    message
}

/// A server that sends messages for each query over UDP, and runs as long as the test.
async fn server(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        loop {
            let (bytes, client) = socket.recv_from(&mut query).await.unwrap();
            for answer in answers(&query[..bytes]) {
                socket.send_to(&answer, client).await.unwrap();
            }
        }
    });
    address
}

fn servers(addresses: &[SocketAddr]) -> NameServers {
    NameServers { addresses: addresses.to_vec(), timeout: SHORT, attempts: 2, only_tcp: false }
}

/// The code of the answer, and its last byte, which belongs to the text.
async fn ask(addresses: &[SocketAddr]) -> (u8, Option<u8>) {
    let answer = servers(addresses).ask(&question(), LONG, &|_target| true).await.unwrap();
    (answer[3] & 15, answer.get(QUERY.len()..).and_then(<[u8]>::last).copied())
}

#[test]
fn configuration_is_that_of_the_host() {
    let parse = |text: &str| NameServers::parse(text.as_bytes());
    let expected = |addresses: &[&str], timeout_s, attempts, only_tcp| NameServers {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        timeout: Duration::from_secs(timeout_s),
        attempts,
        only_tcp,
    };
    assert_eq!(parse(""), expected(&["127.0.0.1:53"], 5, 2, false));
    let text =
        "# made\nnameserver 192.0.2.53\nfoo bar\nnameserver nowhere\nnameserver 2001:db8::53\nsearch a.example\n";
    assert_eq!(parse(text), expected(&["192.0.2.53:53", "[2001:db8::53]:53"], 5, 2, false));
    let text = "nameserver fe80::1%1\noptions edns0 timeout:1 attempts:3 use-vc trust-ad unknown";
    assert_eq!(parse(text), expected(&["[fe80::1%1]:53"], 1, 3, true));
    let text = "nameserver 1.1.1.1\n".repeat(9) + "options timeout:0 attempts:99";
    assert_eq!(parse(&text), expected(&["1.1.1.1:53"; 3], 1, 5, false));
    assert_eq!(parse("options timeout:999"), expected(&["127.0.0.1:53"], 30, 2, false));
}

#[tokio::test]
async fn first_answer_counts() {
    let good = server(|query| vec![response(query, 0, b'a'), response(query, 0, b'b')]).await;
    assert_eq!(ask(&[good]).await, (0, Some(b'a')));
    let missing = server(|query| vec![response(query, 3, b'a')]).await;
    assert_eq!(ask(&[missing, good]).await, (3, Some(b'a')));
}

#[tokio::test]
async fn forged_responses_are_ignored() {
    let stray = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let hostile = server(|query| {
        let mut other_id = response(query, 0, b'x');
        other_id[1] ^= 1;
        let mut other_question = response(query, 0, b'y');
        other_question[14] = b'x';
        vec![other_id, other_question, b"short".to_vec(), query.to_vec(), response(query, 0, b'a')]
    });
    let hostile = hostile.await;
    assert_eq!(ask(&[hostile]).await, (0, Some(b'a')));
    // A message from another port never arrives.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        let (bytes, client) = socket.recv_from(&mut query).await.unwrap();
        stray.send_to(&response(&query[..bytes], 0, b'z'), client).await.unwrap();
        socket.send_to(&response(&query[..bytes], 0, b'a'), client).await.unwrap();
    });
    assert_eq!(ask(&[address]).await, (0, Some(b'a')));
}

#[tokio::test]
async fn next_server_is_asked_after_a_failure() {
    let good = server(|query| vec![response(query, 0, b'a')]).await;
    let refused = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = server(|_query| Vec::new()).await;
    for bad in [refused, silent] {
        assert_eq!(ask(&[bad, good]).await, (0, Some(b'a')));
    }
    for code in [1, 2, 4, 5] {
        let failing = server(move |query| vec![response(query, code, b'x')]).await;
        assert_eq!(ask(&[failing, good]).await, (0, Some(b'a')), "code {code}");
        assert_eq!(ask(&[failing]).await, (2, None), "code {code}");
    }
    let cut = server(|query| vec![response(query, 0, b'a')[..QUERY.len() + 5].to_vec()]).await;
    assert_eq!(ask(&[cut]).await, (2, None), "an invalid record");
    assert_eq!(ask(&[silent, refused]).await, (2, None));
}

#[tokio::test]
async fn bytes_behind_the_last_section_are_ignored() {
    let longer = server(|query| vec![[response(query, 0, b'a'), vec![0]].concat()]).await;
    assert_eq!(ask(&[longer]).await, (0, Some(b'a')));
}

#[tokio::test]
async fn each_server_is_asked_within_the_whole_time() {
    let good = server(|query| vec![response(query, 0, b'a')]).await;
    let silent = server(|_query| Vec::new()).await;
    let servers = NameServers { timeout: LONG, ..servers(&[silent, silent, good]) };
    let answer = timeout(LONG, servers.ask(&question(), 3 * SHORT, &|_target| true)).await.unwrap().unwrap();
    assert_eq!(answer.last(), Some(&b'a'));
}

#[tokio::test]
async fn denied_target_ends_the_lookup() {
    // An alias of `secret.example`.
    let leading = server(|query| {
        let mut message = response(query, 0, b'x')[..query.len()].to_vec();
        message.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x05\0\x09\x06secret\xc0\x10");
        vec![message]
    });
    let leading = leading.await;
    let good = server(|query| vec![response(query, 0, b'a')]).await;
    let ask = |denied: &'static str| async move {
        let may_lead_to = |target: &Target| target.name.as_ref().unwrap().as_str() != denied;
        servers(&[leading, good]).ask(&question(), LONG, &may_lead_to).await
    };
    assert_eq!(ask("secret.example").await, None);
    assert!(ask("other.example").await.is_some());
}

#[tokio::test]
async fn truncated_response_is_asked_for_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        loop {
            let (bytes, client) = socket.recv_from(&mut query).await.unwrap();
            socket.send_to(&truncated(&query[..bytes]), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut query = vec![0; client.read_u16().await.unwrap().into()];
            client.read_exact(&mut query).await.unwrap();
            let mut answer = response(&query, 0, b't');
            answer[7] = 200;
            let text = [b"\xc0\x0c\0\x10\0\x01\0\0\0\x05\0\x65\x64".to_vec(), vec![b't'; 100]].concat();
            answer.extend(text.repeat(199));
            client.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            client.write_all(&answer).await.unwrap();
        }
    });
    let answer = servers(&[address]).ask(&question(), LONG, &|_target| true).await.unwrap();
    assert_eq!((answer[3] & 15, answer[7] > 100, answer.len() > 10_000), (0, true, true));
    let only_tcp = NameServers { only_tcp: true, ..servers(&[address]) };
    assert_eq!(only_tcp.ask(&question(), LONG, &|_target| true).await, Some(answer));
}
