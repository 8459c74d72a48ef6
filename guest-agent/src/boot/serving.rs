// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The serving child of PID 1: the agent that the image brings, or PID 1's own.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use nix::{
    fcntl::OFlag,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{ForkResult, dup2_stdin, dup2_stdout, execv, pipe2, write},
};
use waggle_protocol::{
    CALL_PORT, Origin,
    boot::{BOOT_CONFIG_BYTES_MAX, BootConfig},
};

use crate::{
    confine::Defences,
    console::report,
    dial,
    guest::{Guest, Mode},
    network::GuestNetwork,
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

/// Forks the serving child: the agent at `image_agent`, or this one. It has no access to the network's sockets.
pub(super) fn start(
    config: &BootConfig,
    image_agent: Option<&str>,
    network: &mut Option<GuestNetwork>,
) -> nix::Result<Serving> {
    let (ready, accepted) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    match sys::fork_single_threaded()? {
        ForkResult::Parent { child } => Ok(Serving { pid: child, ready }),
        ForkResult::Child => {
            drop((ready, network.take()));
            let status = match image_agent {
                Some(path) => exec_image_agent(config, path, &accepted).map_or_else(
                    |source| {
                        report(&format!("failed to start the image's agent {path}: {source}"));
                        1
                    },
                    |never| match never {},
                ),
                None => serve_host(config, Origin::Host, &accepted),
            };
            #[expect(clippy::exit, reason = "the child must not return into PID 1's code")]
            std::process::exit(status)
        }
    }
}

fn exec_image_agent(config: &BootConfig, path: &str, accepted: &OwnedFd) -> io::Result<Infallible> {
    let bytes = config.encode().map_err(io::Error::other)?;
    let mut file = File::from(memfd_create(c"waggle-boot", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    dup2_stdin(&file)?;
    dup2_stdout(accepted)?;
    let path = CString::new(path).map_err(io::Error::other)?;
    let arguments = [path.as_c_str(), c"serve"];
    Ok(execv(&path, &arguments)?)
}

/// Runs the image's agent: the boot configuration is on stdin, and stdout is the pipe to PID 1.
#[must_use]
pub fn serve_from_image() -> ExitCode {
    let served = || -> io::Result<u8> {
        let mut bytes = Vec::new();
        io::stdin().take(BOOT_CONFIG_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        let config = decode(&bytes)?;
        let accepted = io::stdout().as_fd().try_clone_to_owned()?;
        // From here on, stdout is the console, as for any other program.
        dup2_stdout(io::stderr())?;
        let null = File::open("/dev/null")?;
        dup2_stdin(&null)?;
        Ok(u8::try_from(serve_host(&config, Origin::Image, &accepted)).unwrap_or(1))
    };
    match served() {
        Ok(status) => ExitCode::from(status),
        Err(source) => {
            report(&format!("failed to take over from PID 1: {source}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves until the host asks to power off. Returns the exit status: 0 if that is the reason.
fn serve_host(config: &BootConfig, origin: Origin, accepted: &OwnedFd) -> i32 {
    let spawner = match SandboxSpawner::fork(Defences::all_but(&config.relaxed)) {
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
        // It fails only if PID 1 is gone, and the machine with it.
        let _written = write(accepted, b"1");
    };
    match connect_and_serve(guest, ready) {
        Ok(()) => 0,
        Err(source) => {
            report(&format!("stopped serving: {source}"));
            1
        }
    }
}

fn connect_and_serve(guest: Guest, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let stream = dial::connect(CALL_PORT).await?;
        serve(stream, guest, ready).await.map_err(io::Error::other)
    });
    // Threads that hang in the kernel must not delay the power-off.
    runtime.shutdown_background();
    served
}
