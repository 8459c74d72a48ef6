// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host side of waggle: an MCP server that gives AI agents their own isolated Linux machines.
//!
//! `cli` is what a person types, and puts the rest together. The layers are `mcp` and `http` over `service` over
//! `domain`; `machines`, `images`, `network` and `agent` are what the domain's ports are made of on a real host.

pub mod agent;
mod budget;
pub mod causes;
pub mod cli;
pub mod config;
pub mod domain;
pub mod error_code;
pub mod files;
pub mod http;
pub mod images;
pub mod machines;
pub mod mcp;
mod mutex;
pub mod network;
mod printable;
pub mod reaper;
pub mod server;
pub mod service;
pub mod telemetry;
