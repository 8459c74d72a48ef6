// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A server with a certificate: HTTPS, clients that do not finish their handshake or speak plain HTTP, and reloads.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use waggle::{domain::runtime::ByRuntime, files::tls_files::TlsFiles, http, server::Waggle};
use waggle_images::reference::ImageRef;
use waggle_shared::causes::chain;

use crate::{
    certificates::Authority,
    machines::InProcess,
    served::{TIMEOUT, settings},
};

/// A server with TLS.
struct Secured {
    _waggle: Waggle,
    port: u16,
    config: watch::Sender<Arc<ServerConfig>>,
}

async fn serve(flags: &[&str], files: &TlsFiles) -> Secured {
    let settings = settings(flags);
    let image = || "oci:/good".parse::<ImageRef>().unwrap();
    let listener = http::bind(settings.listen_addr).await.unwrap();
    let images = ByRuntime { python: image(), node: image(), shell: image() };
    let mut waggle = Waggle::start(&settings, images, Arc::new(InProcess::default()));
    let (config, current) = watch::channel(Arc::new(files.read().unwrap()));
    waggle.set_tls(Some(current));
    let port = waggle.listen(listener, None, Vec::new()).unwrap().port();
    Secured { _waggle: waggle, port, config }
}

impl Secured {
    async fn plain(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    async fn connect(&self, authority: &Authority, offered: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_with(authority, offered, &TLS13).await
    }

    async fn connect_with(
        &self,
        authority: &Authority,
        offered: &[&[u8]],
        version: &'static SupportedProtocolVersion,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.root()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        timeout(TIMEOUT, TlsConnector::from(Arc::new(config)).connect(name, self.plain().await)).await.unwrap()
    }
}

/// Asks for a page, and returns the status line and the body of the answer.
async fn get<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, page: &str) -> (String, Value) {
    let request = format!("GET {page} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let read = timeout(TIMEOUT, stream.read_buf(&mut answer)).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(read > 0, "the connection ended after {text:?}");
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return (head.lines().next().unwrap_or_default().to_owned(), body);
        }
    }
}

/// Returns the time until the server closes the connection, and the bytes that it sent.
async fn closed(mut stream: TcpStream, since: Instant) -> (Duration, Vec<u8>) {
    let mut sent = Vec::new();
    match timeout(TIMEOUT, stream.read_to_end(&mut sent)).await.unwrap() {
        Ok(_) => {}
        Err(fault) => assert_eq!(fault.kind(), ErrorKind::ConnectionReset),
    }
    (since.elapsed(), sent)
}

fn certificate(stream: &TlsStream<TcpStream>) -> &CertificateDer<'_> {
    &stream.get_ref().1.peer_certificates().unwrap()[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn server_with_a_certificate_answers_over_https() {
    let authority = Authority::new();
    let served = serve(&[], &authority.issue("bee")).await;
    for offered in [&[][..], &[&b"h2"[..], b"http/1.1"], &[b"http/1.1"]] {
        let mut stream = served.connect(&authority, offered).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let chosen = (!offered.is_empty()).then_some(&b"http/1.1"[..]);
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen, "{offered:?}");
        for _ in 0..2 {
            assert_eq!(get(&mut stream, "/healthz").await.0, "HTTP/1.1 200 OK");
        }
    }
    let mut old = served.connect_with(&authority, &[], &TLS12).await.unwrap();
    assert_eq!(get(&mut old, "/healthz").await.0, "HTTP/1.1 200 OK");
    let fault = served.connect(&authority, &[b"h2"]).await.unwrap_err();
    assert!(fault.to_string().contains("NoApplicationProtocol"), "{fault}");
    let stranger = served.connect(&Authority::new(), &[]).await.unwrap_err();
    assert!(stranger.to_string().contains("invalid peer certificate"), "{stranger}");
    // The official client with its own TLS, which needs a crypto provider.
    let _ = ring::default_provider().install_default();
    let root = reqwest::Certificate::from_der(&authority.root()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let answer = client.get(format!("https://127.0.0.1:{}/readyz", served.port)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_to_a_server_with_tls_gets_an_answer_that_says_so() {
    let authority = Authority::new();
    let served = serve(&[], &authority.issue("bee")).await;
    let mut stream = served.plain().await;
    let (status, body) = get(&mut stream, "/mcp").await;
    assert_eq!((status.as_str(), &body["error"]["data"]["code"]), ("HTTP/1.1 400 Bad Request", &"bad_request".into()));
    assert!(body["error"]["message"].as_str().unwrap().contains("https://"), "{body}");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    // A client that sends without end is read for a second, and up to a megabyte; the rest fits into the buffers of the
    // kernel.
    let start = Instant::now();
    let (mut idle, mut endless) = (served.plain().await, served.plain().await);
    idle.write_all(b"POST").await.unwrap();
    let mut sent = 0;
    while sent < 64 << 20 && endless.write_all(&[b'A'; 0x10000]).await.is_ok() {
        sent += 0x10000;
    }
    assert!(sent < 32 << 20, "the server read {sent} bytes");
    let (after, sent) = closed(idle, start).await;
    assert!(after < Duration::from_secs(8) && sent.starts_with(b"HTTP/1.1 400 "), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_handshakes_end_after_ten_seconds_and_lock_out_no_client() {
    let authority = Authority::new();
    let served = serve(&["--max-connections", "3"], &authority.issue("bee")).await;
    let start = Instant::now();
    let silent = served.plain().await;
    let mut partial = served.plain().await;
    // The first record of a handshake, announced and not sent.
    partial.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut slow = served.plain().await;
    slow.write_all(&[22, 3]).await.unwrap();
    // The oldest of them gives way to a client, without plain text on a port with TLS.
    let mut client = served.connect(&authority, &[]).await.unwrap();
    let (after, sent) = closed(silent, start).await;
    assert!(after < Duration::from_secs(5) && sent.is_empty(), "{after:?} {sent:?}");
    assert_eq!(get(&mut client, "/healthz").await.0, "HTTP/1.1 200 OK");
    let ended = tokio::join!(closed(partial, start), closed(slow, start));
    for (after, sent) in [ended.0, ended.1] {
        assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&after) && sent.is_empty(), "{after:?}");
    }
    assert_eq!(get(&mut client, "/healthz").await.0, "HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_handshake_ends_the_connection() {
    let authority = Authority::new();
    let served = serve(&[], &authority.issue("bee")).await;
    let mut stream = served.plain().await;
    // A handshake message of 16 MiB, in records of 16 KiB.
    let mut sent = 0;
    let first = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[7; 0x4000 - 4]].concat();
    let record = [&[22, 3, 1, 0x40, 0][..], &[7; 0x4000]].concat();
    let mut next = first;
    while sent < 8 * 1024 * 1024 && stream.write_all(&next).await.is_ok() {
        sent += next.len();
        next.clone_from(&record);
    }
    assert!(sent < 8 * 1024 * 1024, "the server read {sent} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn reloaded_certificate_is_for_new_connections() {
    let authority = Authority::new();
    let [first, second] = ["bee", "wasp"].map(|name| authority.issue(name));
    let served = serve(&[], &first).await;
    let mut open = served.connect(&authority, &[]).await.unwrap();
    served.config.send_replace(Arc::new(second.read().unwrap()));
    let new = served.connect(&authority, &[]).await.unwrap();
    for (stream, files) in [(&open, &first), (&new, &second)] {
        assert_eq!(*certificate(stream), CertificateDer::from_pem_file(&files.certificate).unwrap());
    }
    assert_eq!(get(&mut open, "/healthz").await.0, "HTTP/1.1 200 OK");
}

#[test]
fn error_for_a_certificate_or_key_names_the_file_and_never_shows_the_key() {
    let authority = Authority::new();
    let (bee, wasp) = (authority.issue("bee"), authority.issue("wasp"));
    let secret: Vec<_> = fs::read_to_string(&bee.key).unwrap().lines().map(str::to_owned).collect();
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(authority.path(name), text).unwrap();
        fs::set_permissions(authority.path(name), Permissions::from_mode(mode)).unwrap();
        authority.path(name)
    };
    let [absent, empty] = [authority.path("absent"), write("empty", "", 0o600)];
    let exposed = write("exposed", &secret.join("\n"), 0o640);
    let cut = write("cut", &secret[..2].join("\n"), 0o600);
    let odd = write("odd", &secret.join("\n").replacen(&secret[1], "!?", 1), 0o600);
    let large = write("large", &" ".repeat(256 * 1024 + 1), 0o600);
    for (certificate, key, expected) in [
        (&absent, &bee.key, "failed to read the certificate in "),
        (&empty, &bee.key, "empty: the file contains no certificate in PEM"),
        (&bee.key, &bee.key, "bee-key.pem: the file contains no certificate in PEM"),
        (&cut, &bee.key, "cut: a certificate is not in PEM"),
        (&large, &bee.key, "large: the file must have at most 256 KiB"),
        (&bee.certificate, &absent, "absent: failed to open the file; it must belong to the server's user"),
        (&bee.certificate, &exposed, "exposed: the file has mode 0640"),
        (&bee.certificate, &empty, "empty: the file must contain a private key in PEM, without a passphrase"),
        (&bee.certificate, &cut, "cut: the key is not in PEM"),
        (&bee.certificate, &odd, "odd: the key is not in PEM"),
        (&bee.certificate, &large, "large: the file must have at most"),
        (&bee.certificate, &wasp.key, "keys may not be consistent: KeyMismatch"),
    ] {
        let files = TlsFiles { certificate: certificate.clone(), key: key.clone() };
        let fault = files.read().unwrap_err();
        let text = format!("{} {fault:?}", chain(&fault));
        assert!(text.contains(expected), "{text}");
        assert!(secret[1..secret.len() - 1].iter().all(|line| !text.contains(line)), "{text}");
    }
}
