// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Refusals by the network policy, for the log and the counters.

use core::net::IpAddr;
use std::fmt;

use super::DomainName;

/// A connection or name that the policy refused, or that was one too many.
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
    /// A connection that the policy allows, beyond the rate of a machine.
    FlowRate { per_second: u32 },
    /// A lookup that the policy allows, beyond the rate of a machine.
    LookupRate { per_second: u32 },
}

impl Refused {
    /// Whether the policy allows the connection or lookup, and only the machine's rate does not.
    #[must_use]
    pub fn exceeds_a_rate(&self) -> bool {
        match self {
            Self::FlowRate { .. } | Self::LookupRate { .. } => true,
            Self::Flow { .. } | Self::Name { .. } => false,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow { address, port, name: None } => write!(f, "{address} port {port}"),
            Self::Flow { address, port, name: Some(name) } => write!(f, "{name} ({address}) port {port}"),
            Self::Name { name } => write!(f, "{name}"),
            Self::FlowRate { per_second } => write!(f, "a connection beyond the rate of {per_second} per second"),
            Self::LookupRate { per_second } => write!(f, "a lookup beyond the rate of {per_second} per second"),
        }
    }
}
