// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings that all commands share: the image's environment and working directory, and the root that paths lie in.

use std::path::PathBuf;

use waggle_protocol::request::User;

use crate::sandbox_user::{HOME, SANDBOX_NAME};

/// The search path of images that set none: the one that the OCI runtimes use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Folders of the home that precede the image's search path for the sandbox user, so that packages that waggle
/// installed are found, and the Python of its virtual environment is the one that runs.
const HOME_PATH: [&str; 2] = ["venv/bin", ".local/bin"];

/// The folder of the home in which Node looks for installed modules.
const HOME_NODE_PATH: &str = "node_modules";

#[derive(Debug)]
pub(crate) struct CommandSettings {
    /// The file system that calls see.
    pub(crate) root: PathBuf,
    /// The image's environment variables.
    pub(crate) env: Vec<(String, String)>,
    /// The folder in which the image wants commands to start.
    pub(crate) working_directory: Option<String>,
}

impl CommandSettings {
    /// The agent's own path to a path of the guest.
    pub(crate) fn agent_path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The environment of every command of `user`; a call's own variables override it.
    pub(crate) fn env(&self, user: User) -> Vec<(String, String)> {
        let (name, home) = match user {
            User::Sandbox => (SANDBOX_NAME, HOME),
            User::Root => ("root", "/root"),
        };
        let home = self.agent_path(home).display().to_string();
        let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("LANG".to_owned(), "C.UTF-8".to_owned())];
        env.extend(self.env.iter().cloned());
        if user == User::Sandbox {
            let path = HOME_PATH.map(|folder| format!("{home}/{folder}:")).concat() + self.path();
            env.extend([("PATH".to_owned(), path), ("NODE_PATH".to_owned(), format!("{home}/{HOME_NODE_PATH}"))]);
        }
        env.extend([("HOME", home.as_str()), ("USER", name), ("LOGNAME", name)].map(|(k, v)| (k.into(), v.into())));
        env
    }

    /// The folders of the image's search path.
    pub(crate) fn search_path(&self) -> Vec<PathBuf> {
        self.path().split(':').filter(|folder| folder.starts_with('/')).map(|folder| self.agent_path(folder)).collect()
    }

    fn path(&self) -> &str {
        self.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value)
    }
}
