// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The place that calls work in: a root folder, the sandbox user's home in it, and who does the work.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::fchown,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use waggle_protocol::{Origin, request::User};

use crate::{
    cgroups::CallGroups,
    exec::KeptOutputs,
    files::Program,
    room::{Door, Room},
};

/// The sandbox user's home, inside the root.
pub const HOME: &str = "/home/sandbox";

/// The sandbox user's and group's number.
pub const SANDBOX_ID: u32 = 1000;

/// The sandbox user's name.
pub const SANDBOX_NAME: &str = "sandbox";

/// The search path of images that name none; the one that the OCI runtimes use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Folders of the home that come before the image's search path, for work of the sandbox user: what waggle installs for
/// it is found, and the Python of its virtual environment is the one that runs.
const HOME_PATH: [&str; 2] = ["venv/bin", ".local/bin"];

/// Where Node looks for the modules that are installed in the home.
const HOME_NODE_PATH: &str = "node_modules";

/// What the agent is to serve.
#[derive(Debug)]
pub struct Guest {
    /// Where the agent came from.
    pub origin: Origin,
    /// The file system that calls see: `/` in a machine, any folder elsewhere.
    pub root: PathBuf,
    /// Who does the work.
    pub work: Work,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
    /// Where the image wants commands to start: an absolute path.
    pub working_directory: Option<String>,
}

/// Who does the work of calls, and where.
#[derive(Debug)]
pub enum Work {
    /// In a machine: the user `sandbox`, or the guest's root where a call says so, in a room. Needs to be root.
    Room(Door),
    /// Whoever runs the agent. The clock stays as it is, too: the machine is not the agent's own.
    Caller,
}

/// What the agent serves, once it has a runtime.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) origin: Origin,
    root: PathBuf,
    env: Vec<(String, String)>,
    working_directory: Option<String>,
    /// Where commands live; none if they are the caller's.
    pub(crate) room: Option<Room>,
    /// What file workers are started from.
    pub(crate) worker_program: Program,
    numbers: AtomicU64,
    /// Files that long outputs were kept in.
    pub(crate) outputs: KeptOutputs,
    /// Groups of the room's calls.
    pub(crate) groups: CallGroups,
    /// The guest's `/tmp`, as it was before any user work: what lies there under that name later is not the agent's to
    /// follow.
    tmp: OwnedFd,
}

impl Served {
    /// Enters the room, if there is one.
    pub(crate) fn enter(guest: Guest) -> io::Result<Self> {
        let room = match guest.work {
            Work::Room(door) => Some(Room::enter(door)?),
            Work::Caller => None,
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let tmp = open(&guest.root.join("tmp"), flags, Mode::empty())?;
        Ok(Self {
            origin: guest.origin,
            root: guest.root,
            env: guest.env,
            working_directory: guest.working_directory,
            room,
            worker_program: Program::find()?,
            numbers: AtomicU64::new(1),
            groups: CallGroups::default(),
            tmp,
            outputs: KeptOutputs::default(),
        })
    }

    /// A number that no other command of this agent has.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a file, or a pipe, that the agent has made `user`'s: opened again by name (`/dev/stdout` is one), it asks
    /// for the permissions of a file.
    pub(crate) fn give(&self, file: impl AsFd, user: User) -> io::Result<()> {
        match (&self.room, user) {
            (Some(_), User::Sandbox) => fchown(file, Some(SANDBOX_ID), Some(SANDBOX_ID)),
            (Some(_), User::Root) | (None, _) => Ok(()),
        }
    }

    /// The guest's `/tmp`.
    pub(crate) fn tmp(&self) -> io::Result<OwnedFd> {
        self.tmp.try_clone()
    }

    /// The file system that calls see.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a path of the guest's lies in the agent's own view.
    pub(crate) fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The environment that every command gets; a call's own variables come on top.
    pub(crate) fn command_env(&self, root_user: bool) -> Vec<(String, String)> {
        let (name, home) = if root_user { ("root", "/root") } else { (SANDBOX_NAME, HOME) };
        let home = match self.room {
            Some(_) => home.to_owned(),
            None => self.place(home).display().to_string(),
        };
        let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("LANG".to_owned(), "C.UTF-8".to_owned())];
        env.extend(self.env.iter().cloned());
        if !root_user {
            let image_path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path).to_owned();
            let path = HOME_PATH.map(|folder| format!("{home}/{folder}:")).concat() + &image_path;
            env.extend([("PATH".to_owned(), path), ("NODE_PATH".to_owned(), format!("{home}/{HOME_NODE_PATH}"))]);
        }
        env.extend([("HOME", home.as_str()), ("USER", name), ("LOGNAME", name)].map(|(k, v)| (k.into(), v.into())));
        env
    }

    /// Where the image wants commands to start.
    pub(crate) fn working_directory(&self) -> Option<&str> {
        self.working_directory.as_deref()
    }

    /// The folders of the search path that commands get.
    pub(crate) fn search_path(&self) -> impl Iterator<Item = PathBuf> {
        let path = self.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        path.split(':')
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| self.place(folder))
            .collect::<Vec<_>>()
            .into_iter()
    }
}
