// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Registries that may be reached without TLS: registries on this machine, and registries that the operator names. This
//! module also decides which redirects are allowed.

use std::{convert::Infallible, net::IpAddr, str::FromStr};

use reqwest::Url;

use waggle_shared::address::{Kind, kind};

/// Registries that the operator names, each as `HOST` or `HOST:PORT`. Registries on this machine are always allowed.
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
    /// Returns whether `registry`, a host with or without a port, may be reached without TLS.
    pub(super) fn allows(&self, registry: &str) -> bool {
        Url::parse(&format!("http://{registry}/")).is_ok_and(|url| self.allows_url(&url))
    }

    /// Like [`Self::allows`], for the host of a URL.
    pub(super) fn allows_url(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let named = |name: &String| {
            *name == host || url.port_or_known_default().is_some_and(|port| *name == format!("{host}:{port}"))
        };
        is_loopback(host) || self.0.iter().any(named)
    }

    /// Returns whether `first` may redirect to `next`. A redirect to plain HTTP is allowed only if both hosts may be
    /// reached without TLS. A redirect to an address of [`Kind::Special`], such as a loopback or link-local address or
    /// a cloud metadata service, is allowed only from the same host, or between loopback hosts. Names are not resolved
    /// here. If a name resolves to such an address, the service at the address has no certificate for the name, so
    /// HTTPS to the service fails. Names that may be reached without TLS have no such protection.
    pub(super) fn allows_redirect(&self, first: &Url, next: &Url) -> bool {
        let (Some(from), Some(to)) = (first.host_str(), next.host_str()) else { return false };
        let plain = next.scheme() == "http" && self.allows_url(first) && self.allows_url(next);
        let is_local = to == "localhost" || address(to).is_some_and(|address| kind(address) == Kind::Special);
        (next.scheme() == "https" || plain) && (!is_local || from == to || (is_loopback(from) && is_loopback(to)))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || address(host).is_some_and(|address| address.is_loopback())
}

/// Parses a URL's host as an IP address. An IPv6 address is in brackets.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_allowed_only_for_this_machine_and_named_registries() {
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

    #[test]
    fn rejects_redirects_to_local_addresses_and_to_plain_http() {
        let hosts: PlainHosts = "registry.lan, store.lan".parse().unwrap();
        for (first, next, allowed) in [
            ("https://a.example/", "https://b.example/", true),
            ("https://a.example/", "https://10.0.0.1/", true),
            ("https://a.example/", "http://a.example/", false),
            ("https://a.example/", "http://store.lan/", false),
            ("https://a.example/", "http://localhost:631/", false),
            ("https://a.example/", "https://localhost/", false),
            ("https://a.example/", "https://127.1/", false),
            ("https://a.example/", "https://[::ffff:127.0.0.1]/", false),
            ("https://a.example/", "http://169.254.169.254/", false),
            ("https://a.example/", "https://169.254.169.254/", false),
            ("https://a.example/", "ftp://b.example/", false),
            ("http://registry.lan/", "http://store.lan/", true),
            ("http://registry.lan/", "http://other.lan/", false),
            ("http://registry.lan/", "http://127.0.0.1/", false),
            ("http://localhost:5000/", "http://127.0.0.1:5001/", true),
            ("http://localhost:5000/", "https://169.254.169.254/", false),
            ("https://169.254.0.9/", "https://169.254.0.9:5000/", true),
        ] {
            assert_eq!(
                hosts.allows_redirect(&first.parse().unwrap(), &next.parse().unwrap()),
                allowed,
                "{first} {next}"
            );
        }
    }
}
