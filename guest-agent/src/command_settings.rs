// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Settings of all commands: the environment, the working directory, and the root of all paths.

use std::{collections::BTreeMap, path::PathBuf};

use waggle_protocol::request::User;

use crate::{npm, python_cache, sandbox_user::SandboxUser};

/// The search path for images that set none: the default of the OCI runtimes.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variable with which Python writes its output at once, and not only when it ends. A program that is stopped would
/// otherwise lose its output.
const UNBUFFERED: (&str, &str) = ("PYTHONUNBUFFERED", "1");

/// Folders in the home that precede the image's search path for the sandbox user. They contain packages that waggle
/// installed, and the Python of the virtual environment.
const HOME_PATH: [&str; 2] = ["venv/bin", ".local/bin"];

/// Folders in the home that follow the image's search path for the sandbox user. A package's program must not replace a
/// program of the image.
const HOME_PATH_LAST: [&str; 1] = ["node_modules/.bin"];

/// The folder in the home where Node looks for installed modules.
const HOME_NODE_PATH: &str = "node_modules";

/// Root's tools for Rust, and the folder with the toolchains that they need.
const ROOT_CARGO: &str = "/root/.cargo/bin";
const ROOT_TOOLCHAINS: &str = "/root/.rustup";

/// Variables with a setting of git. git otherwise refuses to work in repositories of other users, such as those that
/// the image's root has cloned. Root's git keeps its check, because the sandbox user can write a repository's settings.
const GIT_SETTING: [(&str, &str); 3] =
    [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")];

#[derive(Debug)]
pub(crate) struct CommandSettings {
    /// The root of the file system that calls use.
    pub(crate) root: PathBuf,
    /// The image's environment variables.
    env: Vec<(String, String)>,
    /// The image's working directory for commands.
    pub(crate) working_directory: Option<String>,
    user: SandboxUser,
    /// Variables for the sandbox user's commands that the image's programs need. The image's own variables override
    /// them.
    tools: Vec<(String, String)>,
    /// The prefix of root's npm, if the sandbox user has another prefix.
    root_npm_prefix: Option<String>,
}

impl CommandSettings {
    /// Creates the settings, and looks for tools of the image that need a variable.
    pub(crate) fn new(
        root: PathBuf,
        env: Vec<(String, String)>,
        working_directory: Option<String>,
        user: SandboxUser,
    ) -> Self {
        let mut settings = Self { root, env, working_directory, user, tools: Vec::new(), root_npm_prefix: None };
        settings.tools = settings.tool_variables();
        settings.root_npm_prefix = npm::root_prefix(settings.path());
        settings
    }

    /// Converts a path of the guest to the agent's path of the same file.
    pub(crate) fn agent_path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the environment of a command of `user`. The call's own variables override the returned ones. Each
    /// variable appears only once, because programs disagree on which of two values counts.
    pub(crate) fn env(&self, user: User) -> BTreeMap<String, String> {
        let (name, home, shell) = match user {
            User::Sandbox => (self.user.name.as_str(), self.user.home.as_str(), self.user.shell.as_str()),
            User::Root => ("root", "/root", "/bin/sh"),
        };
        let home = self.agent_path(home).display().to_string();
        // The output is never a terminal, and programs that ask for its type find out that it can do nothing.
        let defaults = [("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8"), ("TERM", "dumb"), ("SHELL", shell), UNBUFFERED];
        let mut env: BTreeMap<_, _> = owned(defaults).into_iter().collect();
        match user {
            User::Sandbox => env.extend(self.tools.iter().cloned()),
            User::Root => {
                let prefix = self.root_npm_prefix.iter();
                env.extend(prefix.map(|prefix| ("NPM_CONFIG_PREFIX".to_owned(), prefix.clone())));
            }
        }
        env.extend(self.env.iter().cloned());
        if user == User::Sandbox {
            let (path, modules) = (search_path(&home, self.path()), format!("{home}/{HOME_NODE_PATH}"));
            env.extend(owned([("PATH", path.as_str()), ("NODE_PATH", modules.as_str())]));
        }
        env.extend(owned([("HOME", home.as_str()), ("USER", name), ("LOGNAME", name)]));
        env
    }

    /// Returns the folder of Python's cache, if the image's Python needs one and the image sets no other.
    pub(crate) fn python_cache(&self) -> Option<&str> {
        let mut set = self.tools.iter().filter(|(name, _)| name == python_cache::VARIABLE);
        let is_own = !self.env.iter().any(|(name, _)| name == python_cache::VARIABLE);
        set.next().filter(|_| is_own).map(|(_, folder)| folder.as_str())
    }

    /// Returns the folders of the image's search path, as paths of the agent.
    pub(crate) fn search_path(&self) -> Vec<PathBuf> {
        self.path().split(':').filter(|folder| folder.starts_with('/')).map(|folder| self.agent_path(folder)).collect()
    }

    fn path(&self) -> &str {
        path_of(&self.env)
    }

    fn tool_variables(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        if !self.env.iter().any(|(name, _)| name == "GIT_CONFIG_COUNT") {
            variables.extend(owned(GIT_SETTING));
        }
        if python_cache::is_needed(&self.search_path()) {
            let cache = self.agent_path(&self.user.home).join(python_cache::FOLDER);
            variables.push((python_cache::VARIABLE.to_owned(), cache.display().to_string()));
        }
        if self.path().split(':').any(|folder| folder == ROOT_CARGO) && self.agent_path(ROOT_TOOLCHAINS).is_dir() {
            variables.extend(owned([("RUSTUP_HOME", ROOT_TOOLCHAINS)]));
        }
        variables
    }
}

/// Returns the search path of the sandbox user's commands, from the home and the image's search path.
pub(crate) fn search_path(home: &str, image_path: &str) -> String {
    let first = HOME_PATH.map(|folder| format!("{home}/{folder}:")).concat();
    let last = HOME_PATH_LAST.map(|folder| format!(":{home}/{folder}")).concat();
    format!("{first}{image_path}{last}")
}

/// Returns the search path in an image's variables.
pub(crate) fn path_of(env: &[(String, String)]) -> &str {
    env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value)
}

fn owned<const N: usize>(variables: [(&str, &str); N]) -> Vec<(String, String)> {
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}
