// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host side of waggle: an MCP server that gives AI agents their own isolated Linux machines.
//!
//! `cli` is what a person types, and puts the rest together. The layers are `mcp` and `http` over `service` over
//! `domain`, with `infra` under the domain's ports.

mod budget;
pub mod causes;
pub mod cli;
pub mod config;
pub mod domain;
pub mod error_code;
pub mod http;
pub mod infra;
pub mod mcp;
mod mutex;
pub mod reaper;
pub mod server;
pub mod service;
pub mod telemetry;
