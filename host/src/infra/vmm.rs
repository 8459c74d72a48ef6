// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Machines as QEMU makes them.

mod console;
mod cpio;
mod initramfs;
mod kernel;
mod modinfo;
mod modules;
mod probe;
mod probe_guest;
mod programs;
mod qemu;
mod run_dirs;
mod runner;
mod runner_messages;
mod sys;
mod tsc;

pub use programs::MissingProgram;
pub use runner::run_if_runner;
