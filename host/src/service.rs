// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Operations on environments: create and destroy them, run code in them, use their files.
//!
//! Services use the domain's types, and reach machines only through the domain's traits. Their error texts name tools
//! and arguments; nothing else here depends on MCP.

pub mod callers;
mod driver;
pub mod environments;
pub mod execution;
pub mod fault;
pub mod filesystem;
mod guest_answer;
mod inbox;
mod installation_queue;
pub mod journal;
mod refusals;
mod registry;
mod request;
pub mod resume_note;
pub mod saving;
