// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Asks the host's name servers for records that the system's resolver does not look up, which are all but addresses.
//!
//! Uses the servers, the timeout and the number of attempts of resolv.conf(5), as the system's resolver does: one
//! server after the other, over UDP, and over TCP if the response does not fit. A response counts only if it comes from
//! the server and the port that were asked, and has the query's random id and its question.

use std::{
    error::Error,
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use resolv_conf::{Config, ScopedIp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    dns::{Code, Question},
    records::{MayLeadTo, RelayFault, Response},
};

/// The file with the addresses of the host's name servers.
const CONFIGURATION: &str = "/etc/resolv.conf";

/// Maximum length of the file that is read, in bytes; ordinary files have a few hundred.
const CONFIGURATION_BYTES_MAX: u64 = 64 * 1024;

const PORT: u16 = 53;

/// Limits of resolv.conf(5): the number of servers, the timeout of one attempt, and the number of attempts.
const SERVERS_MAX: usize = 3;
const TIMEOUT_MAX_S: u32 = 30;
const ATTEMPTS_MAX: u32 = 5;

/// Maximum length of a response over UDP, in bytes. Servers send at most 512 to a client without EDNS.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// The code of a response to a name that does not exist.
const NX_DOMAIN: u16 = Code::NxDomain as u16;

/// The name servers of the host, and how it asks them.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct NameServers {
    addresses: Vec<SocketAddr>,
    timeout: Duration,
    attempts: u32,
    /// Whether the servers are asked over TCP only.
    only_tcp: bool,
}

impl NameServers {
    /// Reads the host's configuration, which may change at any time. Blocks for as long as the file system does.
    pub(super) fn of_host() -> Self {
        let mut text = Vec::new();
        let read = File::open(CONFIGURATION).and_then(|file| file.take(CONFIGURATION_BYTES_MAX).read_to_end(&mut text));
        if let Err(fault) = read {
            tracing::debug!(
                error = &fault as &dyn Error,
                "failed to read {CONFIGURATION}; asking the local name server"
            );
        }
        Self::parse(&text)
    }

    /// Parses the text of a resolv.conf file without the lines that are invalid, as the system's resolver does. Without
    /// a server in the file, there is one on this host.
    fn parse(text: &[u8]) -> Self {
        let (config, _faults) = Config::parse_with_errors(text);
        let mut addresses: Vec<_> = config.nameservers.iter().filter_map(address).take(SERVERS_MAX).collect();
        if addresses.is_empty() {
            addresses.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        let timeout = Duration::from_secs(config.timeout.clamp(1, TIMEOUT_MAX_S).into());
        Self { addresses, timeout, attempts: config.attempts.clamp(1, ATTEMPTS_MAX), only_tcp: config.use_vc }
    }

    /// Asks the servers until one has an answer, and returns the answer to the guest, or `None` if the answer leads to
    /// a name that is not allowed. The caller limits the whole time. An attempt takes at most an equal part of it, so
    /// that each server is asked.
    pub(super) async fn ask(
        &self,
        question: &Question,
        whole: Duration,
        may_lead_to: &MayLeadTo<'_>,
    ) -> Option<Vec<u8>> {
        let part = u32::try_from(self.addresses.len()).ok().and_then(|servers| whole.checked_div(servers));
        let attempt = part.map_or(self.timeout, |part| part.min(self.timeout));
        for _ in 0..self.attempts {
            for server in &self.addresses {
                let asked = timeout(attempt, self.ask_one(*server, question, may_lead_to)).await;
                match asked.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                    Ok(answer) => return answer,
                    Err(fault) => tracing::debug!(error = &fault as &dyn Error, %server, "a name server has no answer"),
                }
            }
        }
        Some(question.failure(Code::ServFail))
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        question: &Question,
        may_lead_to: &MayLeadTo<'_>,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut id = [0; 2];
        getrandom::fill(&mut id)?;
        let id = u16::from_be_bytes(id);
        let mut message = if self.only_tcp { None } else { over_udp(server, id, question).await? };
        if message.is_none() {
            message = Some(over_tcp(server, id, question).await?);
        }
        let response = message.as_deref().and_then(|message| Response::read(message, id, question));
        let response = response.filter(|response| matches!(response.code(), 0 | NX_DOMAIN));
        match response.map(|response| response.answer(question, may_lead_to)) {
            Some(Ok(answer)) => Ok(Some(answer)),
            Some(Err(RelayFault::Denied)) => Ok(None),
            Some(Err(RelayFault::Invalid)) | None => {
                Err(io::Error::other("the response reports a failure or is invalid"))
            }
        }
    }
}

fn address(server: &ScopedIp) -> Option<SocketAddr> {
    match server {
        ScopedIp::V4(address) => Some((*address, PORT).into()),
        ScopedIp::V6(address, None) => Some((*address, PORT).into()),
        ScopedIp::V6(address, Some(scope)) => {
            let number = scope.parse().ok().or_else(|| nix::net::if_::if_nametoindex(scope.as_str()).ok())?;
            Some(SocketAddrV6::new(*address, PORT, 0, number).into())
        }
    }
}

/// Returns the response to a query over UDP, or `None` if it does not fit.
async fn over_udp(server: SocketAddr, id: u16, question: &Question) -> io::Result<Option<Vec<u8>>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel chooses a random port, and a connected socket receives only from the server.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question.query(id)).await?;
    let mut message = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let bytes = socket.recv(&mut message).await?;
        let received = message.get(..bytes).unwrap_or_default();
        // Other messages may be forged, so the response is still to come.
        if let Some(response) = Response::read(received, id, question) {
            let is_whole = !response.is_truncated() && bytes < DATAGRAM_BYTES_MAX;
            return Ok(is_whole.then(|| received.to_vec()));
        }
    }
}

async fn over_tcp(server: SocketAddr, id: u16, question: &Question) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let query = question.query(id);
    let mut message = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    message.extend(query);
    stream.write_all(&message).await?;
    let bytes = stream.read_u16().await?;
    message.resize(bytes.into(), 0);
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests;
