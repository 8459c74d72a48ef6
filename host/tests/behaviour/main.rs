// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The whole host as an MCP client sees it, over real HTTP. Each machine is the real guest agent in this process.
//!
//! Features of real machines (the sandbox user, kills across process groups, package managers) are tested on real
//! machines.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

mod bad_input;
mod cancelling;
mod certificates;
mod commands;
mod connections;
mod files;
mod forks;
mod installing;
mod lasting;
mod lasting_ends;
mod life;
mod limits;
mod listings;
mod live;
mod logs;
mod machines;
mod principals;
mod raw;
mod requests;
mod served;
mod story;
mod tasks;
mod tls;
mod waiting;
