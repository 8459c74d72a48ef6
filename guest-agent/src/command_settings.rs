// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of all commands: the image's environment and working directory, and the root of all paths.

use std::path::PathBuf;

use waggle_protocol::request::User;

use crate::sandbox_user::{HOME, SANDBOX_NAME};

/// The search path for images that set none: the default of the OCI runtimes.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variable with which Python writes its output at once, and not only when it ends. A program that is stopped would
/// otherwise lose its output.
const UNBUFFERED: (&str, &str) = ("PYTHONUNBUFFERED", "1");

/// Folders in the home that precede the image's search path for the sandbox user. They contain packages that waggle
/// installed, and the Python of the virtual environment.
const HOME_PATH: [&str; 2] = ["venv/bin", ".local/bin"];

/// The folder in the home where Node looks for installed modules.
const HOME_NODE_PATH: &str = "node_modules";

#[derive(Debug)]
pub(crate) struct CommandSettings {
    /// The root of the file system that calls use.
    pub(crate) root: PathBuf,
    /// The image's environment variables.
    pub(crate) env: Vec<(String, String)>,
    /// The image's working directory for commands.
    pub(crate) working_directory: Option<String>,
}

impl CommandSettings {
    /// Converts a path of the guest to the agent's path of the same file.
    pub(crate) fn agent_path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the environment of a command of `user`. The call's own variables override the returned ones.
    pub(crate) fn env(&self, user: User) -> Vec<(String, String)> {
        let (name, home) = match user {
            User::Sandbox => (SANDBOX_NAME, HOME),
            User::Root => ("root", "/root"),
        };
        let home = self.agent_path(home).display().to_string();
        let defaults = [("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8"), UNBUFFERED];
        let mut env: Vec<_> = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        env.extend(self.env.iter().cloned());
        if user == User::Sandbox {
            let path = HOME_PATH.map(|folder| format!("{home}/{folder}:")).concat() + self.path();
            env.extend([("PATH".to_owned(), path), ("NODE_PATH".to_owned(), format!("{home}/{HOME_NODE_PATH}"))]);
        }
        env.extend([("HOME", home.as_str()), ("USER", name), ("LOGNAME", name)].map(|(k, v)| (k.into(), v.into())));
        env
    }

    /// Returns the folders of the image's search path, as paths of the agent.
    pub(crate) fn search_path(&self) -> Vec<PathBuf> {
        self.path().split(':').filter(|folder| folder.starts_with('/')).map(|folder| self.agent_path(folder)).collect()
    }

    fn path(&self) -> &str {
        self.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value)
    }
}
