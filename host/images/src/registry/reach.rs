// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The hosts that pulls may reach.
//!
//! The operator's images may be anywhere. An image that a client has chosen, and that the operator does not name, may
//! only be at public addresses, because the server can reach networks that the client cannot. The addresses that are
//! checked are those that the client library connects to: it gets them from [`PublicAddresses`], for the registry, for
//! its token service, and after each redirect. An address in place of a name never gets to a resolver, so each URL is
//! checked as well. Such pulls use no proxy, because a proxy would look the names up itself.

use std::{error::Error, net::IpAddr, sync::Arc};

use reqwest::{
    ClientBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use tokio::{net::lookup_host, sync::Semaphore};
use waggle_shared::{
    address::{Kind, canonical, kind},
    host_addresses::HostAddressCache,
};

use super::PlainHosts;
use crate::reference::PullRights;

/// Maximum number of concurrent downloads of all pulls of the operator's images together. More downloads are not faster
/// over one network link.
const OPERATOR_DOWNLOADS_AT_ONCE: usize = 6;

/// The same for other images: more than the environments of one client can use with the default limits, because a
/// client may choose a registry that never ends a download.
const PUBLIC_DOWNLOADS_AT_ONCE: usize = 32;

/// The hosts that the pulls of a client library may reach.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// Every host; the rules for plain HTTP and for redirects are those of [`PlainHosts`].
    Operator(PlainHosts),
    /// Hosts at public addresses, over TLS only.
    Public(Arc<PublicAddresses>),
}

impl Reach {
    pub(super) fn new(rights: PullRights, plain: PlainHosts) -> Self {
        match rights {
            PullRights::Operator => Self::Operator(plain),
            PullRights::Public => Self::Public(Arc::default()),
        }
    }

    pub(super) fn downloads(&self) -> Semaphore {
        Semaphore::new(match self {
            Self::Operator(_) => OPERATOR_DOWNLOADS_AT_ONCE,
            Self::Public(_) => PUBLIC_DOWNLOADS_AT_ONCE,
        })
    }

    /// Makes a client library keep to the addresses.
    pub(super) fn restrict(&self, client: ClientBuilder) -> ClientBuilder {
        match self {
            Self::Operator(_) => client,
            Self::Public(addresses) => {
                client.no_proxy().https_only(true).dns_resolver(ResolvePublic(Arc::clone(addresses)))
            }
        }
    }

    /// Whether pulls use the operator's credentials.
    pub(super) fn has_credentials(&self) -> bool {
        matches!(self, Self::Operator(_))
    }

    /// Whether a registry, a host with or without a port, may be reached without TLS.
    pub(super) fn allows_plain(&self, registry: &str) -> bool {
        match self {
            Self::Operator(plain) => plain.allows(registry),
            Self::Public(_) => false,
        }
    }

    /// Whether a registry may be reached at this URL. The addresses of a name are checked when it is looked up.
    pub(super) fn allows(&self, url: &Url) -> bool {
        match self {
            Self::Operator(_) => true,
            Self::Public(addresses) => url.scheme() == "https" && addresses.allow_host(url),
        }
    }

    /// Returns the error for a redirect that is not allowed.
    pub(super) fn redirect_refusal(&self) -> &'static str {
        match self {
            Self::Operator(_) => "forbidden redirect to plain HTTP, or to a loopback or link-local address",
            Self::Public(_) => "forbidden redirect to plain HTTP, or to an address that is not public",
        }
    }

    /// Whether `first` may redirect to `next`, or name it as its token service.
    pub(super) fn allows_redirect(&self, first: &Url, next: &Url) -> bool {
        match self {
            Self::Operator(plain) => plain.allows_redirect(first, next),
            Self::Public(_) => self.allows(next),
        }
    }
}

/// The addresses of the public internet, without those of this host.
#[derive(Debug, Default)]
pub(super) struct PublicAddresses(HostAddressCache);

impl PublicAddresses {
    fn allow(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        kind(address) == Kind::Public && !self.0.current().contains(address)
    }

    /// Whether the URL's host is a name or an allowed address.
    fn allow_host(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        // An IPv6 address is in brackets.
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) => self.allow(address),
            Err(_name) => true,
        }
    }
}

/// Looks names up, and returns only their allowed addresses.
struct ResolvePublic(Arc<PublicAddresses>);

impl Resolve for ResolvePublic {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = Arc::clone(&self.0);
        Box::pin(async move {
            // The client library sets the port.
            let found: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<_> = found.into_iter().filter(|found| addresses.allow(found.ip())).collect();
            if public.is_empty() {
                return Err(Box::<dyn Error + Send + Sync>::from(NotPublic { host: name.as_str().to_owned() }));
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// A name without a public address.
#[derive(Debug, thiserror::Error)]
#[error("{host} has no public address; only images that WAGGLE_ALLOWED_IMAGES names may come from other addresses")]
struct NotPublic {
    host: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_images_come_only_from_public_addresses_over_tls() {
        let reach = Reach::new(PullRights::Public, "registry.lan".parse().unwrap());
        let first = "https://a.example/".parse().unwrap();
        for (next, allowed) in [
            ("https://b.example/", true),
            ("https://9.9.9.9:5000/", true),
            ("https://[2620:fe::fe]/", true),
            ("http://b.example/", false),
            ("http://registry.lan/", false),
            ("https://10.0.0.1/", false),
            ("https://192.168.1.1:5000/", false),
            ("https://127.0.0.1/", false),
            ("https://127.0.0.1./", false),
            ("https://127.1/", false),
            ("https://0x7f.1/", false),
            ("https://2130706433/", false),
            ("https://0.0.0.0/", false),
            ("https://[::1]/", false),
            ("https://[::ffff:10.0.0.1]/", false),
            ("https://[64:ff9b::a00:1]/", false),
            ("https://[fd00::1]/", false),
            ("https://169.254.169.254/", false),
            ("https://168.63.129.16/", false),
        ] {
            let next = next.parse().unwrap();
            assert_eq!((reach.allows(&next), reach.allows_redirect(&first, &next)), (allowed, allowed), "{next}");
        }
        assert!(!reach.allows_plain("localhost:5000") && !reach.allows_plain("registry.lan"));
        assert!(!reach.has_credentials());
    }

    #[tokio::test]
    async fn name_without_a_public_address_is_not_resolved() {
        let resolver = ResolvePublic(Arc::default());
        let found = resolver.resolve("localhost".parse().unwrap()).await.map(|_addresses| ());
        assert!(found.unwrap_err().to_string().starts_with("localhost has no public address"));
    }
}
