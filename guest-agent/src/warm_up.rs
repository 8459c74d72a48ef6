// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Fills Python's cache in the home, if it needs one, before the first calls: compiles the modules of the standard
//! library that programs import most often.
//!
//! The program runs as the sandbox user, confined like a command. It gives way to calls: it has the lowest weight for
//! the processor, little memory and little time.

use std::{fs::File, io, os::fd::OwnedFd, time::Duration};

use tokio::time::timeout;
use waggle_protocol::request::{Limits, User};

use crate::{
    cgroups::CallGroups,
    command_settings::CommandSettings,
    confine::open_files_max,
    platform::Platform,
    sandbox::{Sandbox, Spawn},
    sandbox_user::HOME,
};

/// Number of the program among the commands of the sandbox, whose numbers begin with 1.
const NUMBER: u64 = 0;

/// Maximum memory of the program, in bytes. It needs about 40 MiB.
const MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Maximum number of processes. The program starts none.
const PIDS_MAX: u32 = 4;

/// Maximum time of the program: under emulation it needs about 20 s of an otherwise idle machine.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Imports each module; the image's Python may lack some.
const CODE: &str = "
for name in '''json re os subprocess pathlib collections typing dataclasses datetime random math argparse logging
asyncio urllib.request http.client http.server csv tempfile shutil threading concurrent.futures
sqlite3 unittest hashlib base64 inspect traceback ssl socket statistics decimal fractions glob
zipfile tarfile gzip xml.etree.ElementTree html.parser email.message contextlib copy pprint textwrap
uuid pickle configparser secrets string calendar multiprocessing.pool unittest.mock ast dis runpy
importlib.metadata timeit itertools heapq bisect queue select signal platform'''.split():
    try: __import__(name)
    except Exception: pass
";

/// Runs the program to its end or timeout, in a control group of `groups`. An error means only that calls fill the
/// cache themselves.
pub(crate) async fn fill_python_cache(platform: &Platform, settings: &CommandSettings, groups: &CallGroups) {
    if let (Platform::Machine(sandbox), Some(cache)) = (platform, settings.python_cache()) {
        let _filled = timeout(TIME_MAX, run(sandbox, settings, groups, cache)).await;
    }
}

async fn run(sandbox: &Sandbox, settings: &CommandSettings, groups: &CallGroups, cache: &str) -> io::Result<()> {
    let limits = Limits { memory_bytes: Some(MEMORY_BYTES), pids: Some(PIDS_MAX), open_files: None };
    // The group kills the program when it is dropped.
    let group = groups.create(NUMBER, limits)?;
    group.give_way()?;
    // In isolated mode, Python imports nothing from the home and ignores variables.
    let prefix = format!("pycache_prefix={cache}");
    let spawn = Spawn {
        number: NUMBER,
        argv: ["python3", "-I", "-X", &prefix, "-c", CODE].map(str::to_owned).to_vec(),
        env: settings.env(User::Sandbox).into_iter().collect(),
        working_directories: vec![HOME.to_owned()],
        user: User::Sandbox,
        open_files_max: open_files_max(),
    };
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let started = sandbox.start(&spawn, [null()?, null()?, null()?, group.open()?]).await;
    let mut started = started.map_err(|fault| io::Error::other(fault.message))?;
    // The exit status does not matter.
    let _exited = started.exited().await;
    Ok(())
}
