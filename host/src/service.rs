// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What clients can do with environments: make and destroy them, run code in them, use their files.
//!
//! Services speak the domain's types alone, and of machines know only the domain's ports. Their sentences name tools
//! and arguments; nothing else of MCP is here.

pub(crate) mod driver;
pub mod environments;
pub mod execution;
pub mod fault;
pub mod filesystem;
pub mod journal;
pub(crate) mod log_limit;
pub(crate) mod refusals;
