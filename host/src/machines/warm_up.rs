// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Uses a machine as its first calls will, before it becomes a template. The template then contains what these calls
//! read and prepare: the interpreters, Python's bytecode, and the agent's own programs.
//!
//! No code of a user runs, and the machine has no network. Failures have no effect but a slower first call.

use std::{error::Error, time::Duration};

use crate::{
    agent::AgentClient,
    domain::{
        call_fault::CallFault,
        command::{Command, CommandLimits, Loader, Script},
        file::{ListOptions, Writing},
        guest_path::GuestPath,
    },
};

/// Timeout of one program. It takes a second, but more under emulation on a busy host.
const PROGRAM_MAX: Duration = Duration::from_secs(60);
/// Maximum memory of one program in bytes. Node needs more address space, but not more memory.
const MEMORY_BYTES: u64 = 96 << 20;
/// Maximum number of processes of one program; node has a dozen threads.
const PIDS_MAX: u32 = 64;
/// A file that is written and read. The shell removes it.
const FILE: &str = "/tmp/waggle-template";

/// Imports the modules that programs use most, so that their bytecode is there, too.
const PYTHON: &str = "
for name in '''json re os subprocess pathlib collections typing dataclasses datetime random math argparse logging
asyncio urllib.request http.client http.server csv tempfile shutil threading concurrent.futures sqlite3 unittest
hashlib base64 inspect traceback ssl socket statistics decimal uuid itertools heapq time platform'''.split():
    try: __import__(name)
    except Exception: pass
";

/// The interpreters and the code that each runs.
const PROGRAMS: [(&str, &str, Option<Loader>, &str); 4] = [
    ("python3", "py", Some(Loader::Python), PYTHON),
    ("node", "js", Some(Loader::Node), "require('fs'); require('path'); require('child_process')"),
    ("bash", "sh", None, "rm -f /tmp/waggle-template; ls / >/dev/null; cat /dev/null"),
    ("sh", "sh", None, "rm -f /tmp/waggle-template; ls / >/dev/null; cat /dev/null"),
];

/// Warms the machine up.
pub(super) async fn warm_up(agent: &AgentClient) {
    if let Err(fault) = use_files(agent).await {
        tracing::debug!(error = &fault as &dyn Error, "failed to use the files of a template");
    }
    for (program, extension, loader, code) in PROGRAMS {
        if !agent.capabilities().has(program) {
            continue;
        }
        let command = Command {
            argv: vec![program.to_owned()],
            script: Some(Script { extension, code: code.as_bytes().to_vec(), loader }),
            timeout: PROGRAM_MAX,
            limits: CommandLimits { memory_bytes: Some(MEMORY_BYTES), pids: Some(PIDS_MAX), open_files: None },
            ..Command::default()
        };
        let ran = agent.exec(command, Box::pin(std::future::pending()), &mut |_stream, _output| {}).await;
        if let Err(fault) = ran {
            tracing::debug!(program, error = &fault as &dyn Error, "failed to run a program of a template");
        }
    }
}

async fn use_files(agent: &AgentClient) -> Result<(), CallFault> {
    let Ok(path) = GuestPath::parse(FILE) else { return Ok(()) };
    agent.write_file(&path, b"x", Writing::default()).await?;
    agent.read_file(&path, None, 1).await?;
    let options = ListOptions { entries_max: 10, ..ListOptions::default() };
    agent.list_files(&GuestPath::home(), &options).await.map(|_listing| ())
}
