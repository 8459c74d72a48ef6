// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings for callers of the server, and their limits.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::domain::{origin::Origin, shared_limit::SharedLimit};

/// Callers and their limits.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Serve MCP over standard input and output instead of HTTP, with the log on standard error; the server exits at
    /// the end of its input
    #[arg(long)]
    pub stdio: bool,
    /// Host names and addresses by which clients may address the server, in addition to localhost and the listening
    /// address, separated by commas; required if the server listens on all addresses
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    pub allowed_hosts: Vec<String>,
    /// Web pages that may call the server from a browser, as origins such as `https://app.example`, separated by
    /// commas; by default none (CORS is off)
    #[arg(long, value_delimiter = ',', value_name = "ORIGINS")]
    pub cors_origins: Vec<Origin>,
    /// File with a line for each bearer token: a name, then the token or sha256: with the token's digest; environments
    /// belong to the name. The file is read again on SIGHUP, must belong to the server's user and have mode 0600.
    /// Without this file everyone who reaches the server may use it, and the server listens only on loopback addresses
    #[arg(long, value_name = "FILE")]
    pub auth_tokens_file: Option<PathBuf>,
    /// File with the server's certificate in PEM, followed by the certificates between it and the root; with it the
    /// server speaks HTTPS only. The file is read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key of the certificate in PEM; read again on SIGHUP, must belong to the server's user and
    /// have mode 0600
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Maximum number of concurrent HTTP connections
    #[arg(long, default_value_t = 512, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections: u32,
    /// Maximum number of concurrent sessions; only clients up to protocol version 2025-11-25 have sessions
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_sessions: u32,
    /// Maximum number of concurrent sessions per name in the tokens file [default: all with one name, half with
    /// several]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_sessions_per_principal: Option<u32>,
    /// Maximum number of environments per name in the tokens file [default: all with one name, half with several]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_environments_per_principal: Option<u32>,
    /// Maximum number of concurrent calls
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_calls: u32,
    /// Maximum number of concurrent calls per name in the tokens file [default: all with one name, half with several]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_calls_per_principal: Option<u32>,
}

impl Access {
    #[must_use]
    pub fn calls(&self) -> SharedLimit {
        SharedLimit { all: size(self.max_calls), per_caller: self.max_calls_per_principal.map(size) }
    }

    #[must_use]
    pub fn sessions(&self) -> SharedLimit {
        SharedLimit { all: size(self.max_sessions), per_caller: self.max_sessions_per_principal.map(size) }
    }

    #[must_use]
    pub fn connections_max(&self) -> usize {
        size(self.max_connections)
    }

    /// Returns the files of the certificate and its key, if the server has TLS.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }

    /// Returns a warning if tokens and results would cross a network in plain text.
    #[must_use]
    pub fn plain_text_warning(&self, address: SocketAddr) -> Option<String> {
        let is_exposed = !self.stdio && self.tls().is_none() && !address.ip().is_loopback();
        is_exposed.then(|| {
            format!(
                "{address} is not a loopback address and the server has no TLS, so others on the network can read \
                 tokens, code and results: set --tls-cert (WAGGLE_TLS_CERT) and --tls-key (WAGGLE_TLS_KEY), or listen \
                 on 127.0.0.1 behind a proxy with TLS"
            )
        })
    }

    /// Rejects half a TLS pair, and a server without tokens that other machines can reach.
    pub(super) fn check(&self, address: SocketAddr) -> Result<(), String> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("--tls-cert (WAGGLE_TLS_CERT) and --tls-key (WAGGLE_TLS_KEY) must be set together".to_owned());
        }
        if self.stdio || self.auth_tokens_file.is_some() || address.ip().is_loopback() {
            return Ok(());
        }
        Err(format!(
            "--listen-addr {address} is not a loopback address, so other machines could use the server: set \
             --auth-tokens-file (WAGGLE_AUTH_TOKENS_FILE), or listen on 127.0.0.1"
        ))
    }
}

pub(super) fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
