// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The whole host as an MCP client sees it, over real HTTP, with the real guest agent in-process as the machine.
//!
//! Things that only a machine has (the sandbox user, kills across process groups, package managers) are tested there.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

mod bad_input;
mod cancelling;
mod commands;
mod files;
mod life;
mod limits;
mod live;
mod logs;
mod machines;
mod principals;
mod raw;
mod served;
mod story;
mod tasks;
