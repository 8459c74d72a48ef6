// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The place that calls work in: a root folder, the sandbox user's home in it, and who does the work.

use std::path::{Path, PathBuf};

use waggle_protocol::Origin;

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

/// What the agent serves.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Where the agent came from.
    pub origin: Origin,
    /// The file system that calls see: `/` in a machine, any folder elsewhere.
    pub root: PathBuf,
    /// Who does the work.
    pub identity: Identity,
    /// The image's environment variables.
    pub env: Vec<(String, String)>,
}

/// Who does the work of calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Identity {
    /// The user `sandbox`, or the guest's root where a call says so. Needs to be root.
    Sandbox,
    /// Whoever runs the agent. The clock stays as it is, too: the machine is not the agent's own.
    Caller,
}

impl Guest {
    /// Where a path of the guest's lies in the agent's own view.
    #[must_use]
    pub fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The environment that every command gets; a call's own variables come on top.
    #[must_use]
    pub fn command_env(&self, root_user: bool) -> Vec<(String, String)> {
        let (name, home) = if root_user { ("root", "/root") } else { (SANDBOX_NAME, HOME) };
        let home = match self.identity {
            Identity::Sandbox => home.to_owned(),
            Identity::Caller => self.place(home).display().to_string(),
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

    /// The folders of the search path that commands get.
    pub fn search_path(&self) -> impl Iterator<Item = PathBuf> {
        let path = self.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        path.split(':')
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| self.place(folder))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Whether `root` is the agent's own root, so that the guest's absolute paths mean what they say.
    #[must_use]
    pub fn is_whole_machine(&self) -> bool {
        self.root == Path::new("/")
    }
}
