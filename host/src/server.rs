// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Puts a server together from its settings and from what starts machines, and takes it apart again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Settings,
    domain::{image::ImageRef, ports::Machines, runtime::ByRuntime},
    http::{Check, Server},
    mcp::{self, Defaults, Tools},
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

/// A server that runs.
#[derive(Debug)]
pub struct Waggle {
    address: SocketAddr,
    environments: Arc<Environments>,
    http: Server,
    reaper: JoinHandle<()>,
    stop: CancellationToken,
}

impl Waggle {
    /// Serves environments on the listener; `machines` starts what runs in them.
    ///
    /// # Errors
    /// What the system says if it does not know the listener's address.
    pub fn start(
        settings: &Settings,
        images: ByRuntime<ImageRef>,
        machines: Arc<dyn Machines>,
        checks: Vec<Check>,
        listener: TcpListener,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let size = MachineSize {
            cpus: settings.default_cpus,
            memory_mib: settings.default_memory_mb,
            disk_mib: settings.default_disk_mb,
            boot_timeout: settings.boot_timeout,
        };
        let environments_max = usize::try_from(settings.max_environments).unwrap_or(usize::MAX);
        let environments = Arc::new(Environments::new(machines, size, environments_max));
        let rules = ExecutionRules {
            exec_timeout_default: settings.default_exec_timeout,
            exec_timeout_max: settings.max_exec_timeout,
            install_timeout: settings.install_timeout,
            limits: settings.command_limits(),
            commands: settings.commands(),
        };
        let idle_timeout = Duration::from_secs(u64::from(settings.default_timeout_min) * 60);
        let tools = Tools::new(
            Arc::clone(&environments),
            Execution::new(Arc::clone(&environments), rules),
            Filesystem::new(Arc::clone(&environments)),
            Defaults { images, idle_timeout },
        );
        let stop = CancellationToken::new();
        let call_max = settings.max_exec_timeout.max(settings.install_timeout).max(settings.boot_timeout);
        let endpoint = mcp::endpoint(tools, hosts(address, &settings.allowed_hosts), call_max, stop.clone());
        let http = Server::start(listener, endpoint, checks, stop.clone());
        let reaper = tokio::spawn(reaper::run(Arc::clone(&environments), settings.reaper_interval, stop.child_token()));
        Ok(Self { address, environments, http, reaper, stop })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new connections and calls, lets running calls end, destroys every environment.
    pub async fn shut_down(self) {
        self.http.stop_accepting();
        self.environments.shut_down(DRAIN, RELEASE).await;
        self.http.finish().await;
        self.stop.cancel();
        if let Err(fault) = self.reaper.await {
            tracing::error!(%fault, "the reaper ended badly");
        }
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
