// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! OpenSSH's client, once a call or with one connection that is kept, and the key that it uses.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// From the master's start to its socket; under emulation a connection takes a second.
const MASTER_MAX: Duration = Duration::from_secs(60);

/// How to reach a server: options of `ssh`.
pub(crate) struct Client {
    folder: TempDir,
    options: Vec<String>,
    destination: String,
}

/// A connection that is kept. Dropping it ends it.
pub(crate) struct Master {
    ssh: Child,
    pub(crate) socket: PathBuf,
}

impl Client {
    /// A client with a key of its own; `options` say where the server is.
    pub(crate) fn new(user: &str, options: &[String]) -> Self {
        let folder = tempfile::Builder::new().prefix("wb-").tempdir_in("/tmp").unwrap();
        let client = Self { folder, options: options.to_vec(), destination: format!("{user}@waggle-bench") };
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(client.key()).status();
        assert!(made.unwrap().success(), "ssh-keygen failed");
        client
    }

    /// The same client as another user.
    pub(crate) fn as_user(&self, user: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("wb-").tempdir_in("/tmp").unwrap();
        for name in ["key", "key.pub"] {
            fs::copy(self.folder.path().join(name), folder.path().join(name)).unwrap();
        }
        Self { folder, options: self.options.clone(), destination: format!("{user}@waggle-bench") }
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    pub(crate) fn public_key(&self) -> String {
        fs::read_to_string(self.key().with_extension("pub")).unwrap()
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"]).arg(self.key());
        ssh.args(&self.options);
        ssh
    }

    /// Runs a command over a connection of its own.
    pub(crate) fn once(&self, command: &str, stdin: Stdio) -> Output {
        let ran = self.ssh().arg(&self.destination).arg(command).stdin(stdin).output().unwrap();
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
        ran
    }

    /// Starts a command over a connection of its own.
    pub(crate) fn start(&self, command: &str) -> Child {
        let mut ssh = self.ssh();
        ssh.arg(&self.destination).arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Makes the connection that is kept.
    pub(crate) fn keep(&self) -> Master {
        let socket = self.folder.path().join("master");
        let mut ssh = self.ssh();
        let ssh = ssh.args(["-M", "-N", "-S"]).arg(&socket).arg(&self.destination).stdin(Stdio::null()).spawn();
        let master = Master { ssh: ssh.unwrap(), socket };
        let started = Instant::now();
        while !master.socket.exists() {
            assert!(started.elapsed() < MASTER_MAX, "ssh has not connected");
            sleep(Duration::from_millis(5));
        }
        master
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// An sshd on this machine, unpacked and not installed, on loopback. Dropping it ends it.
pub(crate) struct LocalServer {
    sshd: Child,
    _folder: TempDir,
    pub(crate) client: Client,
}

impl LocalServer {
    /// Starts it; `unpacked` has what `host/benches/unpack-sshd` made.
    pub(crate) fn start(unpacked: &Path, port: u16) -> Self {
        let proxy = ["-o".to_owned(), "HostName=127.0.0.1".to_owned(), "-p".to_owned(), port.to_string()];
        let client = Client::new("root", &proxy);
        let folder = tempfile::Builder::new().prefix("wb-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at("host")]).status();
        assert!(made.unwrap().success(), "ssh-keygen failed");
        fs::write(at("keys"), client.public_key()).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             PermitRootLogin prohibit-password\nUsePAM no\nUseDNS no\nPrintMotd no\nPrintLastLog no\nMaxSessions 64\n",
            at("host"),
            at("keys"),
        );
        fs::write(at("config"), config).unwrap();
        // It insists on a user of its own, whom this machine may not have: a mount that only it sees adds one.
        let users = fs::read_to_string("/etc/passwd").unwrap() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n";
        fs::write(at("users"), users).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let script = format!(
            "mount --bind {} /etc/passwd && mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {} -D -e -f {}",
            at("users"),
            unpacked.join("usr/sbin/sshd").display(),
            at("config"),
        );
        let libraries = [unpacked.join("usr/lib/x86_64-linux-gnu"), unpacked.join("lib/x86_64-linux-gnu")];
        let mut sshd = Command::new("unshare");
        sshd.args(["--mount", "sh", "-c", &script]).env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
        let sshd = sshd.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { sshd, _folder: folder, client };
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < MASTER_MAX, "sshd does not listen; this figure needs root");
            sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}
