// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Builds a server from its settings and an implementation of [`Machines`], and shuts the server down.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use waggle_images::reference::ImageRef;

use crate::{
    config::{Access, Settings},
    domain::{machine::Machines, principal::Principal, runtime::ByRuntime},
    http::{Check, CurrentTls, CurrentTokens, Entrance, Server},
    log_limit,
    lost::{Lost, RunningIds},
    mcp::{self, CallLimits, Defaults, EndpointRules, Tools},
    reaper,
    saved::SavedMachines,
    service::{
        callers::Callers,
        environments::Environments,
        execution::{Execution, ExecutionRules},
        filesystem::Filesystem,
        saving::Saving,
    },
};

// A shutdown takes at most 30 s, as documented: the sum of these two timeouts and of the timeouts of the last
// responses, of the machines, and of blocking tasks.

/// Timeout for running calls in a shutdown.
const DRAIN: Duration = Duration::from_secs(12);

/// Timeout for destroying all environments in a shutdown.
const RELEASE: Duration = Duration::from_secs(12);

// The same time, if environments are suspended: most of it is for writing their memory to the disk.

/// Timeout for running calls before the environments are suspended.
const DRAIN_BEFORE_SUSPEND: Duration = Duration::from_secs(6);

/// Timeout for suspending all environments.
const SUSPEND: Duration = Duration::from_secs(15);

/// Timeout for destroying the environments that could not be suspended.
const RELEASE_UNSUSPENDED: Duration = Duration::from_secs(3);

/// The state that outlives the server and its machines; by default none.
#[derive(Debug, Default)]
pub struct Lasting {
    /// The saved and suspended environments.
    pub store: Option<SavedMachines>,
    /// The ids of the running environments, for the next server.
    pub running: Option<RunningIds>,
    /// The environments that an earlier server has lost.
    pub lost: Vec<Lost>,
    /// Whether idle environments are suspended, and not destroyed.
    pub suspends_idle: bool,
    /// Whether a shutdown suspends the environments, and does not destroy them.
    pub suspends_at_stop: bool,
}

/// A running server: the tools, the environments, and the HTTP server after [`Waggle::listen`].
#[derive(Debug)]
pub struct Waggle {
    tools: Tools,
    access: Access,
    callers: Callers,
    tls: CurrentTls,
    environments: Arc<Environments>,
    suspends_at_stop: bool,
    http: Option<Server>,
    reaper: JoinHandle<()>,
    stop: CancellationToken,
}

impl Waggle {
    /// Starts the tools and the reaper; `machines` starts the machines of environments. Nothing outlives the server.
    #[must_use]
    pub fn start(settings: &Settings, images: ByRuntime<ImageRef>, machines: Arc<dyn Machines>) -> Self {
        Self::start_lasting(settings, images, machines, Lasting::default())
    }

    /// Starts the tools and the reaper, like [`Waggle::start`], with what earlier servers have left.
    #[must_use]
    pub fn start_lasting(
        settings: &Settings,
        images: ByRuntime<ImageRef>,
        machines: Arc<dyn Machines>,
        lasting: Lasting,
    ) -> Self {
        let access = &settings.access;
        let (limit, callers) = (settings.environments(), Callers::default());
        let (boot_timeout, policy) = (settings.boot_timeout, settings.egress.clone());
        let environments = Environments::new(machines, boot_timeout, policy, limit, callers.clone());
        let Lasting { store, running, lost, suspends_idle, suspends_at_stop } = lasting;
        let saving = Saving { store, suspends_idle, callers: callers.clone() };
        let environments = Arc::new(environments.with_saving(saving, running, lost));
        environments.remove_suspended_local();
        let rules = execution_rules(settings);
        let idle_timeout = Duration::from_secs(u64::from(settings.default_timeout_min) * 60);
        let call_max = settings.max_exec_timeout.max(settings.install_timeout).max(settings.boot_timeout);
        let tools = Tools::new(
            Arc::clone(&environments),
            Execution::new(Arc::clone(&environments), rules),
            Filesystem::new(Arc::clone(&environments)),
            Defaults {
                images,
                allowed_images: settings.allowed_images(),
                sizes: settings.sizes(),
                idle_timeout,
                fork_wait: settings.max_exec_timeout.max(settings.install_timeout),
            },
            CallLimits { limit: access.calls(), callers: callers.clone() },
            call_max,
        );
        let stop = CancellationToken::new();
        let reaper = tokio::spawn(reaper::run(Arc::clone(&environments), settings.reaper_interval, stop.child_token()));
        let (access, tls, http) = (access.clone(), None, None);
        Self { tools, access, callers, tls, environments, suspends_at_stop, http, reaper, stop }
    }

    #[must_use]
    pub fn tools(&self) -> Tools {
        self.tools.clone()
    }

    /// Sets the certificate and key of the HTTP server, which has no TLS otherwise.
    pub fn set_tls(&mut self, tls: CurrentTls) {
        self.tls = tls;
    }

    /// Serves the tools over HTTP, with the environments that an earlier server suspended; returns the address.
    ///
    /// # Errors
    /// The system's error.
    pub fn listen(
        &mut self,
        listener: TcpListener,
        tokens: CurrentTokens,
        checks: Vec<Check>,
    ) -> io::Result<SocketAddr> {
        self.listen_with(self.tools.clone(), listener, tokens, checks)
    }

    /// Serves a handler that wraps the tools, like [`Waggle::listen`].
    ///
    /// # Errors
    /// The same as for [`Waggle::listen`].
    pub fn listen_with<H>(
        &mut self,
        handler: H,
        listener: TcpListener,
        tokens: CurrentTokens,
        checks: Vec<Check>,
    ) -> io::Result<SocketAddr>
    where
        H: mcp::ServerHandler + Clone + Sync,
    {
        let address = listener.local_addr()?;
        if let Some(tokens) = &tokens {
            self.callers.count_in(tokens.clone());
        }
        self.environments.restore_suspended(|owner| match &tokens {
            Some(tokens) => tokens.borrow().contains(owner),
            None => *owner == Principal::anonymous(),
        });
        let hosts = hosts(address, &self.access.allowed_hosts);
        let rules = EndpointRules {
            hosts: hosts.clone(),
            origins: self.access.cors_origins.iter().map(|origin| origin.with_port()).collect(),
            sessions: self.access.sessions(),
            callers: self.callers.clone(),
        };
        let endpoint = mcp::endpoint(handler, rules, self.stop.clone());
        let entrance = Entrance {
            tokens,
            tls: self.tls.clone(),
            connections_max: self.access.connections_max(),
            hosts,
            cors_origins: self.access.cors_origins.clone(),
        };
        let environments = Arc::clone(&self.environments);
        self.http = Some(Server::start(listener, endpoint, environments, entrance, checks, self.stop.clone()));
        Ok(address)
    }

    /// Serves the tools to one client over a pair of streams until `input` ends; then cancels the running calls.
    ///
    /// # Errors
    /// The client did not open the session correctly.
    pub async fn converse<R, W>(&self, input: R, output: W) -> Result<(), mcp::ConverseFault>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        mcp::converse(self.tools.for_standard_input(), input, output, self.stop.child_token()).await
    }

    /// Refuses new connections and calls, waits for running calls, then destroys or suspends every environment.
    pub async fn shut_down(self) {
        if let Some(http) = &self.http {
            http.stop_accepting();
        }
        self.tools.cancel_tasks();
        match self.suspends_at_stop {
            true => self.environments.suspend_all(DRAIN_BEFORE_SUSPEND, SUSPEND, RELEASE_UNSUSPENDED).await,
            false => self.environments.shut_down(DRAIN, RELEASE).await,
        }
        self.tools.end_tasks().await;
        if let Some(http) = self.http {
            http.finish().await;
        }
        self.stop.cancel();
        log_limit::log_left_out();
        if let Err(fault) = self.reaper.await {
            tracing::error!(%fault, "the reaper panicked");
        }
    }
}

/// Returns the timeouts, limits and programs for commands.
#[must_use]
pub fn execution_rules(settings: &Settings) -> ExecutionRules {
    ExecutionRules {
        exec_timeout_default: settings.default_exec_timeout,
        exec_timeout_max: settings.max_exec_timeout,
        install_timeout: settings.install_timeout,
        limits: settings.command_limits(),
        commands: settings.commands(),
        output_bytes_default: settings.output_bytes as usize,
    }
}

/// Returns the host names that requests may use. Other names are rejected, since a malicious web page can resolve its
/// own name to the server's address (DNS rebinding). If the server listens on all addresses, the operator must list the
/// names of the machine in `allowed`.
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
    fn server_on_all_addresses_accepts_only_local_and_allowed_names() {
        let local = ["localhost", "127.0.0.1", "::1"];
        assert_eq!(hosts("0.0.0.0:80".parse().unwrap(), &[]), local);
        let named = hosts("0.0.0.0:80".parse().unwrap(), &["waggle.example".to_owned()]);
        assert_eq!(named, ["localhost", "127.0.0.1", "::1", "waggle.example"]);
        assert_eq!(hosts("192.0.2.1:80".parse().unwrap(), &[])[3], "192.0.2.1");
    }
}
