// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Which registries may be spoken to without TLS: those on this machine, and those that the operator names; and where a
//! registry may send us.

use std::{convert::Infallible, net::IpAddr, str::FromStr};

use reqwest::Url;

use crate::domain::egress::{Kind, kind};

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

    /// Whether the one who is asked may send us to the other: without TLS only if both may be spoken to like that, and
    /// to this machine or its wire, where cloud metadata is, only from this machine. A name that leads there gets no
    /// further than its certificate.
    pub(super) fn may_lead(&self, asked: &Url, next: &Url) -> bool {
        let (Some(from), Some(to)) = (asked.host_str(), next.host_str()) else { return false };
        let plain = next.scheme() == "http" && self.allows_url(asked) && self.allows_url(next);
        let near = to == "localhost" || address(to).is_some_and(|address| kind(address) == Kind::Special);
        (next.scheme() == "https" || plain) && (!near || from == to || (is_loopback(from) && is_loopback(to)))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || address(host).is_some_and(|address| address.is_loopback())
}

/// A URL's host as an address; those of IPv6 are in brackets.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
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

    #[test]
    fn a_registry_leads_to_no_place_that_is_nearer_or_plainer_than_itself() {
        let hosts: PlainHosts = "registry.lan, store.lan".parse().unwrap();
        for (asked, next, may) in [
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
            assert_eq!(hosts.may_lead(&asked.parse().unwrap(), &next.parse().unwrap()), may, "{asked} {next}");
        }
    }
}
