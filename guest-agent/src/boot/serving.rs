// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The serving child of PID 1: runs the image's own agent if the image has one, else the same program as PID 1.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    process::ExitCode,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{ForkResult, dup2_stdin, dup2_stdout, execv, pipe2, write},
};
use waggle_protocol::{
    CALL_PORT, Origin,
    boot::{BOOT_CONFIG_BYTES_MAX, BootConfig},
};

use crate::{
    confine::Defences,
    console::{report, with_cause},
    dial::Route,
    guest::{Guest, Mode},
    host_links::HostLinks,
    reaper::Serving,
    sandbox::SandboxSpawner,
    serve::serve,
    sys,
};

/// The subcommand with which PID 1 starts the image's agent.
pub const SERVE: &str = "serve";

pub(super) fn decode(bytes: &[u8]) -> io::Result<BootConfig> {
    if bytes.len() > BOOT_CONFIG_BYTES_MAX {
        let text = format!("too long: must have at most {BOOT_CONFIG_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    BootConfig::decode(bytes).map_err(io::Error::other)
}

/// Forks the serving child, which runs the image's agent at `image_agent`; `None` runs this program instead. The child
/// has no access to the network's sockets.
pub(super) fn start(config: &BootConfig, image_agent: Option<&str>, links: &mut HostLinks) -> nix::Result<Serving> {
    let (ready, accepted) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    match sys::fork_single_threaded()? {
        ForkResult::Parent { child } => Ok(Serving { pid: child, ready }),
        ForkResult::Child => {
            drop((ready, links.network.take()));
            let calls = links.calls.take();
            let status = match image_agent {
                Some(path) => exec_image_agent(config, path, &accepted, calls.as_ref()).map_or_else(
                    |source| {
                        report(&format!("failed to start the image's agent {path}: {source}"));
                        1
                    },
                    |never| match never {},
                ),
                None => serve_host(config, Origin::Host, &accepted, calls),
            };
            #[expect(clippy::exit, reason = "the child must not return into PID 1's code")]
            std::process::exit(status)
        }
    }
}

fn exec_image_agent(
    config: &BootConfig,
    path: &str,
    accepted: &OwnedFd,
    calls: Option<&OwnedFd>,
) -> io::Result<Infallible> {
    let bytes = config.encode().map_err(io::Error::other)?;
    let mut file = File::from(memfd_create(c"waggle-boot", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    dup2_stdin(&file)?;
    dup2_stdout(accepted)?;
    let path = CString::new(path).map_err(io::Error::other)?;
    let mut arguments = vec![path.clone(), c"serve".to_owned()];
    if let Some(port) = calls {
        fcntl(port, FcntlArg::F_SETFD(FdFlag::empty()))?;
        arguments.push(CString::new(port.as_raw_fd().to_string()).map_err(io::Error::other)?);
    }
    Ok(execv(&path, &arguments)?)
}

/// Runs this program as the image's agent. Stdin contains the boot configuration, and stdout is the pipe to PID 1.
/// `calls` is the number of the descriptor of the call link's port; `None` means vsock.
#[must_use]
pub fn serve_from_image(calls: Option<RawFd>) -> ExitCode {
    let served = || -> io::Result<u8> {
        let mut bytes = Vec::new();
        io::stdin().take(BOOT_CONFIG_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        let config = decode(&bytes)?;
        let calls = calls.map(sys::own);
        if let Some(port) = &calls {
            fcntl(port, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let accepted = io::stdout().as_fd().try_clone_to_owned()?;
        // From now on, stdout is the console, as in any other program.
        dup2_stdout(io::stderr())?;
        let null = File::open("/dev/null")?;
        dup2_stdin(&null)?;
        Ok(u8::try_from(serve_host(&config, Origin::Image, &accepted, calls)).unwrap_or(1))
    };
    match served() {
        Ok(status) => ExitCode::from(status),
        Err(source) => {
            report(&format!("failed to start serving as the image's agent: {source}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves until the host requests a power-off. Returns the exit status: 0 after a power-off, 1 after an error.
fn serve_host(config: &BootConfig, origin: Origin, accepted: &OwnedFd, mut calls: Option<OwnedFd>) -> i32 {
    let spawner = match SandboxSpawner::fork(Defences::all_but(&config.relaxed), &mut calls) {
        Ok(spawner) => spawner,
        Err(source) => {
            report(&format!("failed to set up the sandbox: {source}"));
            return 1;
        }
    };
    let guest = Guest {
        origin,
        root: "/".into(),
        mode: Mode::Sandbox(spawner),
        env: config.env.clone(),
        working_directory: config.working_directory.clone(),
    };
    let ready = || {
        // The write fails only if PID 1 is gone, and then the machine ends too.
        let _written = write(accepted, b"1");
    };
    match connect_and_serve(calls.map_or(Route::Vsock(CALL_PORT), Route::Port), guest, ready) {
        Ok(()) => 0,
        Err(source) => {
            report(&format!("stopped serving: {}", with_cause(&source)));
            1
        }
    }
}

fn connect_and_serve(route: Route, guest: Guest, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async { serve(route, guest, ready).await.map_err(io::Error::other) });
    // A thread that hangs in the kernel must not delay the power-off.
    runtime.shutdown_background();
    served
}
