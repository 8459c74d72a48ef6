// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The guest agent's program. It runs as PID 1 of a machine, as the agent of an image, or as a file worker.
//!
//! ```text
//!   waggle-agent                  as PID 1: boots the machine, starts the serving child, reaps
//!   waggle-agent serve [PORT]     as PID 1's child, from the image: serves; stdin has the boot configuration,
//!                                 and a byte is written to stdout once the agent has applied the welcome;
//!                                 PORT is the descriptor of the call link's port; without it, vsock
//!   waggle-agent files ROOT GROUPS
//!                                 as the agent's child: serves one file call on the socket at stdin
//! ```

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

use guest_agent::{boot, console, files};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    match arguments.as_slice() {
        [command] if *command == boot::SERVE => boot::serve_from_image(None),
        [command, port] if *command == boot::SERVE => {
            // The first three descriptors have owners already.
            match port.to_str().and_then(|port| port.parse().ok()).filter(|port| *port > 2) {
                Some(port) => boot::serve_from_image(Some(port)),
                None => ExitCode::from(2),
            }
        }
        [command, root, groups] if *command == files::WORKER => serve_files(Path::new(root), &groups.to_string_lossy()),
        _ if std::process::id() == 1 => boot::run(),
        _ => {
            #[expect(clippy::print_stderr, reason = "for a person who starts the program by hand")]
            {
                eprintln!("waggle-agent must be started by the kernel, as PID 1 of a machine");
            }
            ExitCode::from(2)
        }
    }
}

fn serve_files(root: &Path, groups: &str) -> ExitCode {
    match files::serve_as_sandbox(root, groups) {
        Ok(()) => ExitCode::SUCCESS,
        Err(source) => {
            console::report(&format!("a file worker failed to become the sandbox user: {source}"));
            ExitCode::FAILURE
        }
    }
}
