// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a guest was refused, for whoever counts it and tells the operator.

use core::net::IpAddr;
use std::{fmt, sync::Arc};

use super::{DomainName, Egress};

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

/// The network of one machine: what it may reach, and who hears of what it may not.
#[derive(Clone)]
pub struct Network {
    /// What it may reach.
    pub egress: Egress,
    /// Called at each refusal; it must not block.
    pub on_refusal: Arc<dyn Fn(&Refused) + Send + Sync>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("egress", &self.egress).finish_non_exhaustive()
    }
}
