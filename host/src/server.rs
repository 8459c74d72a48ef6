// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Puts a server together from its settings and from what starts machines, and takes it apart again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Access, Settings},
    domain::{image::ImageRef, ports::Machines, runtime::ByRuntime},
    http::{Check, Entrance, Server, TokensNow},
    mcp::{self, CallLimits, Defaults, EndpointRules, Tools},
    reaper,
    service::{
        environments::{Environments, MachineSize},
        execution::{Execution, ExecutionRules},
        filesystem::Filesystem,
    },
};

// A shutdown takes 30 s at most, as promised: these two, the last answers, and what the machines' owner needs.

/// Running calls get that long to end.
const DRAIN: Duration = Duration::from_secs(12);

/// Destroying every environment gets that long.
const RELEASE: Duration = Duration::from_secs(12);

/// A server that runs: the tools and what they work on, and the HTTP server in front of them once it listens.
#[derive(Debug)]
pub struct Waggle {
    tools: Tools,
    access: Access,
    environments: Arc<Environments>,
    http: Option<Server>,
    reaper: JoinHandle<()>,
    stop: CancellationToken,
}

impl Waggle {
    /// Tools that work on environments; `machines` starts what runs in them.
    #[must_use]
    pub fn start(settings: &Settings, images: ByRuntime<ImageRef>, machines: Arc<dyn Machines>) -> Self {
        let (access, size) = (&settings.access, machine_size(settings));
        let environments_max = usize::try_from(settings.max_environments).unwrap_or(usize::MAX);
        let environments = Arc::new(Environments::new(machines, size, settings.egress.clone(), environments_max));
        let rules = execution_rules(settings);
        let idle_timeout = Duration::from_secs(u64::from(settings.default_timeout_min) * 60);
        let call_max = settings.max_exec_timeout.max(settings.install_timeout).max(settings.boot_timeout);
        let tools = Tools::new(
            Arc::clone(&environments),
            Execution::new(Arc::clone(&environments), rules),
            Filesystem::new(Arc::clone(&environments)),
            Defaults { images, idle_timeout },
            CallLimits { calls_max: access.calls_max(), calls_per_principal_max: access.calls_per_principal_max() },
            call_max,
        );
        let stop = CancellationToken::new();
        let reaper = tokio::spawn(reaper::run(Arc::clone(&environments), settings.reaper_interval, stop.child_token()));
        Self { tools, access: access.clone(), environments, http: None, reaper, stop }
    }

    /// The tools.
    #[must_use]
    pub fn tools(&self) -> Tools {
        self.tools.clone()
    }

    /// Serves the tools over HTTP, and returns where.
    ///
    /// # Errors
    /// What the system says if it does not know the listener's address.
    pub fn listen(&mut self, listener: TcpListener, tokens: TokensNow, checks: Vec<Check>) -> io::Result<SocketAddr> {
        self.listen_with(self.tools.clone(), listener, tokens, checks)
    }

    /// The same for a handler that has the tools in it.
    ///
    /// # Errors
    /// As above.
    pub fn listen_with<H>(
        &mut self,
        handler: H,
        listener: TcpListener,
        tokens: TokensNow,
        checks: Vec<Check>,
    ) -> io::Result<SocketAddr>
    where
        H: mcp::ServerHandler + Clone + Sync,
    {
        let address = listener.local_addr()?;
        let hosts = hosts(address, &self.access.allowed_hosts);
        let rules = EndpointRules { hosts: hosts.clone(), sessions_max: self.access.sessions_max() };
        let endpoint = mcp::endpoint(handler, rules, self.stop.clone());
        let entrance = Entrance { tokens, connections_max: self.access.connections_max(), hosts };
        let environments = Arc::clone(&self.environments);
        self.http = Some(Server::start(listener, endpoint, environments, entrance, checks, self.stop.clone()));
        Ok(address)
    }

    /// Serves the tools to one client over a pair of streams, until the first one ends. Calls that run then are
    /// cancelled.
    ///
    /// # Errors
    /// What the client said in place of a greeting.
    pub async fn converse<R, W>(&self, input: R, output: W) -> Result<(), mcp::ConverseFault>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        mcp::converse(self.tools.clone(), input, output, self.stop.child_token()).await
    }

    /// Takes no new connections and calls, lets running calls end, destroys every environment.
    pub async fn shut_down(self) {
        if let Some(http) = &self.http {
            http.stop_accepting();
        }
        self.tools.cancel_tasks();
        self.environments.shut_down(DRAIN, RELEASE).await;
        self.tools.end_tasks().await;
        if let Some(http) = self.http {
            http.finish().await;
        }
        self.stop.cancel();
        if let Err(fault) = self.reaper.await {
            tracing::error!(%fault, "the reaper ended badly");
        }
    }
}

/// What the settings give every machine.
#[must_use]
pub fn machine_size(settings: &Settings) -> MachineSize {
    MachineSize {
        cpus: settings.default_cpus,
        memory_mib: settings.default_memory_mb,
        disk_mib: settings.default_disk_mb,
        boot_timeout: settings.boot_timeout,
    }
}

/// How long commands may run, and what runs them, as the settings have it.
#[must_use]
pub fn execution_rules(settings: &Settings) -> ExecutionRules {
    ExecutionRules {
        exec_timeout_default: settings.default_exec_timeout,
        exec_timeout_max: settings.max_exec_timeout,
        install_timeout: settings.install_timeout,
        limits: settings.command_limits(),
        commands: settings.commands(),
    }
}

/// The names under which clients reach the server; a browser that was lured here uses another one. A server on every
/// address of its machine does not know its names: they have to be `allowed`.
fn hosts(address: SocketAddr, allowed: &[String]) -> Vec<String> {
    let mut hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let own = address.ip().to_string();
    if !address.ip().is_unspecified() && !hosts.contains(&own) {
        hosts.push(own);
    }
    hosts.extend_from_slice(allowed);
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_address_has_the_names_that_it_is_told() {
        let local = ["localhost", "127.0.0.1", "::1"];
        assert_eq!(hosts("0.0.0.0:80".parse().unwrap(), &[]), local);
        let named = hosts("0.0.0.0:80".parse().unwrap(), &["waggle.example".to_owned()]);
        assert_eq!(named, ["localhost", "127.0.0.1", "::1", "waggle.example"]);
        assert_eq!(hosts("192.0.2.1:80".parse().unwrap(), &[])[3], "192.0.2.1");
    }
}
