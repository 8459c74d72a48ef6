// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Refusals by the network policy, for the log and the counters.

use core::net::IpAddr;
use std::fmt;

use super::DomainName;

/// A connection or name that the policy refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refused {
    Flow {
        address: IpAddr,
        port: u16,
        /// The name for which the environment received the address, if any.
        name: Option<DomainName>,
    },
    /// A name that was not looked up, or that has no allowed address.
    Name { name: DomainName },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow { address, port, name: None } => write!(f, "{address} port {port}"),
            Self::Flow { address, port, name: Some(name) } => write!(f, "{name} ({address}) port {port}"),
            Self::Name { name } => write!(f, "{name}"),
        }
    }
}
