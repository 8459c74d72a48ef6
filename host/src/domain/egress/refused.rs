// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a guest was refused, for whoever counts it and tells the operator.

use core::net::IpAddr;
use std::fmt;

use super::DomainName;

/// One refusal for the policy's sake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refused {
    /// A connection.
    Flow {
        /// Where it should have gone.
        address: IpAddr,
        /// The port there.
        port: u16,
        /// The name that the environment has for the address, if it has one.
        name: Option<DomainName>,
    },
    /// A name that was not looked up, or that leads nowhere allowed.
    Name {
        /// Which.
        name: DomainName,
    },
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
