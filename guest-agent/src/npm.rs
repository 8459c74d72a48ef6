// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes `npm install --global` work for the sandbox user, whose home gets the packages and their programs.
//!
//! The setting is in the configuration file of the image's npm. As a variable, it would prevent nvm from working.
//! Root's commands get a variable with the original prefix.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::sandbox_user::{can_write, read_limited};

/// The folder in the home for global packages. Its `bin` is on the search path.
const SETTING: &str = "prefix=${HOME}/.local\n";

/// Debian's npm, which has other defaults.
const DEBIAN_NPM: &str = "/usr/share/nodejs/npm";
const DEBIAN_PREFIX: &str = "/usr/local";
const DEBIAN_FILE: &str = "/etc/npmrc";

/// Adds the setting to the configuration of the npm on the search path `path`, unless the image has set a prefix.
/// Errors are ignored, because the image's npm works without the setting.
pub(crate) fn set_prefix(path: &str) {
    if let Some(npm) = Npm::find(path)
        && !can_write(&npm.prefix.join("lib/node_modules"))
    {
        let _added = add_setting(&npm.file);
    }
}

/// Returns the prefix for root's global packages, if [`set_prefix`] has changed the configuration.
pub(crate) fn root_prefix(path: &str) -> Option<String> {
    let npm = Npm::find(path)?;
    let text = read_limited(&npm.file).ok()??;
    text.ends_with(SETTING).then(|| npm.prefix.display().to_string())
}

/// The image's npm.
struct Npm {
    /// The folder for global packages by default.
    prefix: PathBuf,
    /// The configuration file.
    file: PathBuf,
}

impl Npm {
    fn find(path: &str) -> Option<Self> {
        let prefix = node_prefix(path)?;
        if prefix == Path::new("/usr") && Path::new(DEBIAN_NPM).is_dir() {
            return Some(Self { prefix: DEBIAN_PREFIX.into(), file: DEBIAN_FILE.into() });
        }
        Some(Self { file: prefix.join("etc/npmrc"), prefix })
    }
}

/// Returns the folder that contains the `bin` folder of node. npm computes it in the same way.
fn node_prefix(path: &str) -> Option<PathBuf> {
    let folders = path.split(':').filter(|folder| folder.starts_with('/'));
    let node = folders.map(|folder| Path::new(folder).join("node")).find(|node| node.is_file())?;
    let prefix = fs::canonicalize(node).ok()?.parent()?.parent()?.to_path_buf();
    // nvm refuses versions whose configuration sets a prefix.
    let is_nvm = prefix.iter().any(|name| name == ".nvm" || name == "nvm");
    (!is_nvm).then_some(prefix)
}

fn add_setting(file: &Path) -> io::Result<()> {
    let Some(text) = read_limited(file)? else { return Ok(()) };
    if text.lines().any(|line| line.trim_start().starts_with("prefix")) {
        return Ok(());
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    fs::write(file, format!("{text}{gap}{SETTING}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_is_added_once_and_never_replaces_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etc/npmrc");
        for _ in 0..2 {
            add_setting(&file).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), SETTING);
        }
        fs::write(&file, "fund=false").unwrap();
        add_setting(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("fund=false\n{SETTING}"));
        fs::write(&file, "prefix = /opt\n").unwrap();
        add_setting(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "prefix = /opt\n");
    }
}
