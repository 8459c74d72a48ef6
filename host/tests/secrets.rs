// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The real program with a password in its settings: its output never contains the password, whatever the error.
#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::json;
use tempfile::TempDir;

const PASSWORD: &str = "honey-in-the-pot";

/// The user name `bee` and the password, in Base64 as they are sent.
const CREDENTIALS: &str = "YmVlOmhvbmV5LWluLXRoZS1wb3Q=";

/// A registry's token.
const TOKEN: &str = "wax-of-the-hive";

const VALID: &str = "http://bee:honey-in-the-pot@127.0.0.1:3128";

/// An environment's id.
const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

/// Invalid URLs of a proxy, each with the password in it.
const INVALID: [&str; 7] = [
    "https://bee:honey-in-the-pot@h:3128",
    "http://bee:honey-in-the-pot@h",
    "http://bee:honey-in-the-pot@h:0",
    "http://bee:honey-in-the-pot@h:port",
    "http://bee:honey-in-the-pot@:3128",
    "bee:honey-in-the-pot@h:3128",
    "http://h:honey-in-the-pot",
];

/// The commands that have the proxy setting.
const COMMANDS: [&[&str]; 3] = [&["serve"], &["doctor"], &["run", "python", "script.py"]];

/// A home folder for the program.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waggle"));
        command.args(arguments).env_clear().env("HOME", self.folder.path()).env("WAGGLE_LISTEN_ADDR", "127.0.0.1:0");
        command.env("RUST_LOG", "trace").env("PATH", "/nowhere");
        command
    }

    /// Writes a file with the mode that a file of secrets must have.
    fn file(&self, content: &str) -> PathBuf {
        let path = self.folder.path().join("proxy");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// Runs a command to its end. Returns everything that the command prints, which must contain no secret.
fn printed(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for secret in [PASSWORD, CREDENTIALS, TOKEN] {
        assert!(!text.contains(secret), "{command:?} prints {secret}:\n{text}");
    }
    (output, text)
}

fn refused(command: &mut Command, expected: &str) {
    let (output, text) = printed(command);
    assert!(!output.status.success(), "{command:?}:\n{text}");
    assert!(text.contains(expected), "{command:?}:\n{text}");
}

#[test]
fn error_for_an_invalid_proxy_hides_its_password() {
    let host = Host::new();
    for arguments in COMMANDS {
        for url in INVALID {
            let expected = "--egress-proxy";
            refused(host.command(arguments).args(["--egress-proxy", url]), expected);
            refused(host.command(arguments).arg(format!("--egress-proxy={url}")), expected);
            refused(host.command(arguments).env("WAGGLE_EGRESS_PROXY", url), expected);
        }
    }
}

#[test]
fn error_for_an_invalid_proxy_file_names_its_path() {
    let host = Host::new();
    for url in INVALID {
        let path = host.file(url);
        let path = path.to_str().unwrap();
        refused(host.command(&["serve"]).args(["--egress-proxy-file", path]), path);
        refused(host.command(&["serve"]).env("WAGGLE_EGRESS_PROXY_FILE", path), path);
    }
    let path = host.file(VALID);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    refused(host.command(&["serve"]).arg("--egress-proxy-file").arg(&path), "0644");
}

#[test]
fn error_for_two_proxy_settings_names_both() {
    let host = Host::new();
    let path = host.file(VALID);
    for arguments in COMMANDS {
        let mut command = host.command(arguments);
        let (_, text) = printed(command.env("WAGGLE_EGRESS_PROXY", VALID).arg("--egress-proxy-file").arg(&path));
        assert!(text.contains("--egress-proxy (WAGGLE_EGRESS_PROXY)"), "{text}");
        assert!(text.contains("--egress-proxy-file (WAGGLE_EGRESS_PROXY_FILE)"), "{text}");
    }
}

#[test]
fn error_for_a_misplaced_proxy_hides_its_password() {
    let host = Host::new();
    for arguments in [
        &["serve", "--egress-proxy", VALID, "--egress-proxy", VALID][..],
        &["serve", VALID],
        &["serve", "--egress-proxies", VALID],
        &["serve", "--egress-proxies=http://bee:honey-in-the-pot@h:1"],
        &["serve", "--stdio=http://bee:honey-in-the-pot@h:1"],
        &["serve", "--", VALID],
        &["serve", "--listen-addr", VALID],
        &["serve", "--egress", VALID],
        &["serve", "--image-python", VALID],
        &["serve", "--image-python", "docker://bee:honey-in-the-pot@h/x"],
        &["ps", VALID],
        &[VALID],
    ] {
        refused(&mut host.command(arguments), "error: ");
    }
}

#[test]
fn error_for_a_file_that_is_a_url_hides_its_password() {
    let host = Host::new();
    for setting in ["EGRESS_PROXY_FILE", "CA_BUNDLE", "AUTH_TOKENS_FILE"] {
        refused(host.command(&["serve"]).env(format!("WAGGLE_{setting}"), VALID), "http://...@127.0.0.1:3128");
    }
    let mut tls = host.command(&["serve"]);
    refused(tls.env("WAGGLE_TLS_CERT", VALID).env("WAGGLE_TLS_KEY", VALID), "http://...@127.0.0.1:3128");
}

#[test]
fn errors_never_show_the_content_of_a_key() {
    let host = Host::new();
    // Neither the file of a key nor one that was mixed up with it is quoted, whatever the library finds in it.
    for text in [
        PASSWORD.to_owned(),
        format!("-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n-----END PRIVATE KEY-----\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{CREDENTIALS}\n-----END PRIVATE KEY-----\n"),
        format!("-----BEGIN CERTIFICATE-----\n{CREDENTIALS}\n-----END CERTIFICATE-----\n"),
        format!("-----BEGIN {PASSWORD}-----\n{CREDENTIALS}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n-----END {PASSWORD}-----\n"),
    ] {
        let path = host.file(&text);
        for command in [&["serve"][..], &["doctor", "--no-boot"]] {
            let (output, text) =
                printed(host.command(command).env("WAGGLE_TLS_CERT", &path).env("WAGGLE_TLS_KEY", &path));
            assert!(!output.status.success() && text.contains(path.to_str().unwrap()), "{text}");
        }
    }
}

#[test]
fn help_never_shows_the_proxy() {
    let host = Host::new();
    let pages = host.folder.path().join("pages");
    let man = ["man", pages.to_str().unwrap()];
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["serve", "-h"],
        &["run", "--help"],
        &["doctor", "--help"],
        &["image", "--help"],
        &["help", "serve"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["gen", "settings"],
        &man,
    ] {
        let (output, text) = printed(host.command(arguments).env("WAGGLE_EGRESS_PROXY", VALID));
        assert!(output.status.success(), "{arguments:?}:\n{text}");
    }
    assert!(texts(&pages).iter().all(|page| !page.contains(PASSWORD)));
}

fn texts(folder: &Path) -> Vec<String> {
    let pages: Vec<_> =
        folder.read_dir().unwrap().map(|page| fs::read_to_string(page.unwrap().path()).unwrap()).collect();
    assert!(!pages.is_empty());
    pages
}

#[test]
fn errors_never_show_the_credentials_for_a_server() {
    let host = Host::new();
    let remote = |url, command: &[&str]| {
        let mut asking = host.command(&command[..1]);
        asking.args(["--url", url]).args(&command[1..]);
        asking
    };
    for command in [&["ps"][..], &["logs", ID], &["exec", ID, "--", "true"]] {
        for url in ["http://bee:honey-in-the-pot@127.0.0.1:1/mcp", "http://bee:honey-in-the-pot@h:x/mcp"] {
            refused(&mut remote(url, command), "mcp");
        }
        refused(remote("http://127.0.0.1:1/mcp", command).env("WAGGLE_TOKEN", PASSWORD), "http://127.0.0.1:1/mcp");
    }
}

#[test]
fn logs_of_a_pull_never_show_passwords_or_tokens() {
    let host = Host::new();
    let registry = Answering::start(|head, address| match head.split(' ').nth(1) {
        Some("/v2/") => format!("401 No\r\nWWW-Authenticate: Bearer realm=\"http://{address}/token\"\r\n\r\n"),
        Some(path) if path.starts_with("/token") => format!("200 OK\r\n\r\n{{\"token\":\"{TOKEN}\"}}"),
        _ => "404 No\r\n\r\n".to_owned(),
    });
    let auth = json!({"auths": {registry.address.to_string(): {"auth": CREDENTIALS}}});
    fs::write(host.folder.path().join("config.json"), auth.to_string()).unwrap();
    let image = format!("{}/bees/hive:1", registry.address);
    let mut pull = host.command(&["image", "pull", &image]);
    refused(pull.env("DOCKER_CONFIG", host.folder.path()), "TRACE");
    let heads = registry.heads();
    for shown in [format!("Basic {CREDENTIALS}"), format!("Bearer {TOKEN}")] {
        assert!(heads.iter().any(|head| head.contains(&shown)), "{heads:?}");
    }
}

#[test]
fn logs_never_show_the_password_of_the_pull_proxy() {
    let host = Host::new();
    let proxy = Answering::start(|_head, _address| "407 No\r\n\r\n".to_owned());
    let url = format!("http://bee:{PASSWORD}@{}", proxy.address);
    let mut pull = host.command(&["image", "pull", "registry.test/bees/hive:1"]);
    refused(pull.env("HTTPS_PROXY", url), "TRACE");
    let heads = proxy.heads();
    assert!(heads.iter().any(|head| head.contains(&format!("Basic {CREDENTIALS}"))), "{heads:?}");
}

/// A server that chooses each answer by the head of the request, and collects the heads.
struct Answering {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Answering {
    fn start(answer: fn(&str, SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let kept = Arc::clone(&heads);
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut first = [0];
                // waggle tries TLS first, even with a registry on this machine.
                if stream.peek(&mut first).unwrap() == 0 || !first[0].is_ascii_uppercase() {
                    continue;
                }
                let lines = BufReader::new(&stream).lines().map(Result::unwrap);
                let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let head = head.join("\n");
                let answer = answer(&head, address).replacen("\r\n", "\r\nConnection: close\r\n", 1);
                kept.lock().unwrap().push(head);
                write!(stream, "HTTP/1.1 {answer}").unwrap();
            }
        });
        Self { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}
