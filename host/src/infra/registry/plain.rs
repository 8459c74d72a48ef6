// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Which registries may be spoken to without TLS: those on this machine, and those that the operator names.

use std::{convert::Infallible, net::IpAddr, str::FromStr};

use reqwest::Url;

/// Registries by `HOST` or `HOST:PORT`; those on this machine need not be named.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PlainHosts(Vec<String>);

impl FromIterator<String> for PlainHosts {
    fn from_iter<T: IntoIterator<Item = String>>(hosts: T) -> Self {
        Self(hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect())
    }
}

impl FromStr for PlainHosts {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect())
    }
}

impl PlainHosts {
    /// `registry` is a host, perhaps with a port.
    pub(super) fn allows(&self, registry: &str) -> bool {
        Url::parse(&format!("http://{registry}/")).is_ok_and(|url| self.allows_url(&url))
    }

    /// Whether what this URL names may be spoken to without TLS.
    pub(super) fn allows_url(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let named = |name: &String| {
            *name == host || url.port_or_known_default().is_some_and(|port| *name == format!("{host}:{port}"))
        };
        is_loopback(host) || self.0.iter().any(named)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_named_registries_may_be_plain_and_no_others() {
        let hosts: PlainHosts = "registry.lan, Other.lan:5000".parse().unwrap();
        for registry in ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000", "registry.lan", "registry.lan:80"]
        {
            assert!(hosts.allows(registry), "{registry}");
        }
        assert!(hosts.allows("other.lan:5000"));
        for registry in ["other.lan", "other.lan:5001", "docker.io", "localhost.example", "128.0.0.1", "x.registry.lan"]
        {
            assert!(!hosts.allows(registry), "{registry}");
        }
    }
}
