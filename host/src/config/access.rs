// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings that say who may call the server, and how much of it they may take.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// Who may call, and how much.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Speak MCP over standard input and output instead of HTTP, with the log on standard error; the server ends with
    /// its input
    #[arg(long)]
    pub stdio: bool,
    /// Names and addresses under which clients may reach the server, besides those of this machine and the one to serve
    /// on, separated by commas; needed where it serves on every address
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    pub allowed_hosts: Vec<String>,
    /// File with a line for each bearer token: a name and the token, or sha256: and its digest; environments belong to
    /// the name. It is read again on SIGHUP and has to be the server's alone (mode 0600). Without it the server is open
    /// to whoever can reach it, and only listens on a loopback address
    #[arg(long, value_name = "FILE")]
    pub auth_tokens_file: Option<PathBuf>,
    /// How many HTTP connections there can be at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "COUNT")]
    pub max_connections: u32,
    /// How many sessions of clients there can be at once; only clients up to protocol version 2025-11-25 have sessions
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "COUNT")]
    pub max_sessions: u32,
    /// How many calls can run at once
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "COUNT")]
    pub max_calls: u32,
    /// How many calls of one token's name can run at once
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "COUNT")]
    pub max_calls_per_principal: u32,
}

impl Access {
    /// The limit of calls.
    #[must_use]
    pub fn calls_max(&self) -> usize {
        size(self.max_calls)
    }

    /// The limit of one principal's calls.
    #[must_use]
    pub fn calls_per_principal_max(&self) -> usize {
        size(self.max_calls_per_principal)
    }

    /// The limit of sessions.
    #[must_use]
    pub fn sessions_max(&self) -> usize {
        size(self.max_sessions)
    }

    /// The limit of connections.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        size(self.max_connections)
    }

    /// A server that anybody can call must not be where anybody can reach it.
    pub(super) fn check(&self, address: SocketAddr) -> Result<(), String> {
        if self.stdio || self.auth_tokens_file.is_some() || address.ip().is_loopback() {
            return Ok(());
        }
        Err(format!(
            "--listen-addr {address} is not a loopback address, so whoever reaches it could use the server: set \
             --auth-tokens-file (WAGGLE_AUTH_TOKENS_FILE), or listen on 127.0.0.1"
        ))
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
