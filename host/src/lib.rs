// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The host side of waggle: an MCP server that gives AI agents their own isolated Linux microVMs.
//!
//! ```text
//!                cli                   parses the command line and wires everything together
//!                 │
//!             http, mcp                the tools and the protocol, over HTTP or standard streams
//!                 │
//!              service                 owns the environments; runs commands and file calls in them
//!                 │
//!              domain                  states, rules and ports; no I/O and no clock
//!                 ▲
//!                 │ implements the ports
//!             machines                 starts microVMs with libkrun or QEMU
//!            ┌────┴────┐
//!         network    agent             network: connects the guests; agent: calls the guest agent
//!            │
//!          files                       files that hold secrets
//! ```
//!
//! Each module imports only modules below it, and every module may import the types and ports of `domain`. Machines
//! start from images that the crate `waggle_images` prepares; `waggle_shared` has the modules that both crates use.
//!
//! Read these first:
//!
//! 1. [`server`]: builds a server from its settings and an implementation of `Machines`, and shuts the server down
//! 2. [`mcp`]: the tools, from a request's arguments to its result
//! 3. [`service::environments`]: creating, finding, using and destroying environments
//! 4. [`domain::lifecycle`]: the states of an environment, as a table
//! 5. [`machines`]: the microVMs, and the processes that run them
//!
//! Example of a server over standard input and output, with any implementation of `Machines`:
//!
//! ```no_run
//! use std::{error::Error, sync::Arc};
//!
//! use waggle::{
//!     cli::{self, Command},
//!     config::{self, process_variable},
//!     domain::machine::Machines,
//!     mcp,
//!     server::Waggle,
//! };
//!
//! async fn serve(machines: Arc<dyn Machines>) -> Result<(), Box<dyn Error>> {
//!     let arguments = cli::parse(["waggle", "serve", "--stdio"].map(Into::into), &process_variable)?;
//!     let Command::Serve(settings) = arguments.command else { unreachable!("the command line says serve") };
//!     let images = config::images(&settings, &settings.folders(&process_variable)?.data, &|_| false)?;
//!     let server = Waggle::start(&settings, images, machines);
//!     let (input, output) = mcp::standard_streams();
//!     server.converse(input, output).await?;
//!     server.shut_down().await;
//!     Ok(())
//! }
//! ```

pub mod agent;
mod budget;
pub mod cli;
pub mod config;
pub mod data_folder;
pub mod domain;
pub mod error_code;
pub mod files;
pub mod http;
mod log_limit;
pub mod lost;
pub mod machines;
pub mod mcp;
pub mod network;
pub mod reaper;
pub mod saved;
pub mod server;
pub mod service;
pub mod telemetry;
