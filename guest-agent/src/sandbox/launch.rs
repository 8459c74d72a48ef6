// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Starts one command: forks into the call's cgroup, confines the child, executes the program. A failed child reports
//! the failed step through a pipe that a successful exec closes. The init process reads the pipe only after the child
//! has exited: otherwise, a slow exec or a stopped child would delay the whole sandbox.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::signal::SigSet,
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchdir, pipe2, read, setsid, write},
};

use super::message::{SPAWN_FDS, Spawn, SpawnStep};
use crate::{
    confine::{Defences, confine},
    sandbox_user::Groups,
    sys,
};

/// The reading end of a child's error pipe. The child writes to the pipe if a step before exec, or exec itself, fails.
#[derive(Debug)]
pub(super) struct ErrorPipe(OwnedFd);

impl ErrorPipe {
    /// Returns the failed step and its error; `None` if the program was executed, or the child was killed before exec.
    pub(super) fn read(&self) -> Option<(SpawnStep, Errno)> {
        let mut fault = [0; 2];
        match read(&self.0, &mut fault) {
            Ok(2) => Some((SpawnStep::from_byte(fault[0]), Errno::from_raw(fault[1].into()))),
            Ok(_) | Err(_) => None,
        }
    }
}

/// Starts a command with the descriptors that [`SPAWN_FDS`] describes. An error contains the failed step.
pub(super) fn launch(
    spawn: &Spawn,
    fds: Vec<OwnedFd>,
    groups: &Groups,
    defences: Defences,
) -> Result<(Pid, ErrorPipe), (SpawnStep, Errno)> {
    let fds: [OwnedFd; SPAWN_FDS] = fds.try_into().map_err(|_wrong_count| (SpawnStep::Fork, Errno::EBADMSG))?;
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let (errors, error_sender) = pipe2(flags).map_err(|errno| (SpawnStep::Fork, errno))?;
    let [stdin, stdout, stderr, cgroup] = &fds;
    match sys::fork_into_cgroup(cgroup.as_fd()).map_err(|errno| (SpawnStep::Fork, errno))? {
        ForkResult::Child => {
            let Err((step, errno)) = become_command(spawn, [stdin, stdout, stderr], groups, defences);
            let number = u8::try_from(errno as i32).unwrap_or(u8::MAX);
            let _sent = write(&error_sender, &[step as u8, number]);
            #[expect(clippy::exit, reason = "a forked child must not return into its parent's code")]
            std::process::exit(127)
        }
        ForkResult::Parent { child } => {
            drop((error_sender, fds));
            Ok((child, ErrorPipe(errors)))
        }
    }
}

fn become_command(
    spawn: &Spawn,
    stdio: [&OwnedFd; 3],
    groups: &Groups,
    defences: Defences,
) -> Result<Infallible, (SpawnStep, Errno)> {
    let [stdin, stdout, stderr] = stdio;
    let at = |step| move |errno| (step, errno);
    setsid().map_err(at(SpawnStep::Fork))?;
    // The child has inherited the agent's exemption from the OOM killer.
    let score = fs::write("/proc/self/oom_score_adj", "0");
    score.map_err(|fault| (SpawnStep::Confine, Errno::from_raw(fault.raw_os_error().unwrap_or_default())))?;
    for dup in [dup2_stdin(stdin.as_fd()), dup2_stdout(stdout.as_fd()), dup2_stderr(stderr.as_fd())] {
        dup.map_err(at(SpawnStep::Fork))?;
    }
    sys::reset_sigpipe().map_err(at(SpawnStep::Confine))?;
    SigSet::empty().thread_set_mask().map_err(at(SpawnStep::Confine))?;
    confine(spawn.user, groups, defences, spawn.open_files_max).map_err(at(SpawnStep::Confine))?;
    enter(&spawn.working_directories).map_err(at(SpawnStep::WorkingDirectory))?;
    exec(spawn).map_err(at(SpawnStep::Exec))
}

/// Enters the first folder that the user may enter. Rejects paths through a descriptor (`/proc/self/fd/7`), because
/// this process has an open descriptor of the call's cgroup folder, which is outside the sandbox.
fn enter(folders: &[String]) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut entered = Err(Errno::ENOENT);
    for folder in folders {
        entered = openat2(AT_FDCWD, folder.as_str(), how).and_then(fchdir);
        if entered.is_ok() {
            break;
        }
    }
    entered
}

/// Executes `argv[0]`, which is a path if it contains a slash, and otherwise the name of a program on the search path.
/// In contrast to `execvp`, uses the command's own search path and never runs a shell.
fn exec(spawn: &Spawn) -> Result<Infallible, Errno> {
    let text = |text: &str| CString::new(text).map_err(|_nul| Errno::EINVAL);
    let arguments: Vec<CString> = spawn.argv.iter().map(|argument| text(argument)).collect::<Result<_, _>>()?;
    let variable = |(name, value): &(String, String)| text(&format!("{name}={value}"));
    let env: Vec<CString> = spawn.env.iter().map(variable).collect::<Result<_, _>>()?;
    let program = spawn.argv.first().ok_or(Errno::EINVAL)?;
    if program.contains('/') {
        return execve(&text(program)?, &arguments, &env);
    }
    let search = spawn.env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    let mut worst = Errno::ENOENT;
    for folder in search.split(':').filter(|folder| folder.starts_with('/')) {
        let Err(errno) = execve(&text(&format!("{folder}/{program}"))?, &arguments, &env);
        if errno == Errno::EACCES {
            // This file is not executable; a later folder may contain an executable one.
            worst = errno;
        } else if !matches!(errno, Errno::ENOENT | Errno::ENOTDIR) {
            return Err(errno);
        }
    }
    Err(worst)
}
