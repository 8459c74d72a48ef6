// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The user that calls run as, unless they request root.
//!
//! The user always has the number [`SANDBOX_ID`]. Its name, shell and groups are those of the image's user with that
//! number; PID 1 adds the user `sandbox` to images without such a user. [`HOME`] always leads to the user's home.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

/// A path to the sandbox user's home, inside the root: the home itself, or a link to it.
pub(crate) const HOME: &str = "/home/sandbox";

/// The user id of the sandbox user, and the group id of a sandbox user that the image does not have.
pub(crate) const SANDBOX_ID: u32 = 1000;

pub(crate) const SANDBOX_NAME: &str = "sandbox";

/// Maximum size of a user or group file in bytes. Larger files are neither read nor changed.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Maximum number of the user's groups. The groups of a larger list are ignored; images have far fewer.
const GROUPS_MAX: usize = 64;

/// The sandbox user's entry in the user file, and its groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SandboxUser {
    pub(crate) name: String,
    pub(crate) home: String,
    pub(crate) shell: String,
    pub(crate) groups: Groups,
}

/// The groups of the sandbox user. They are passed to file workers as numbers separated by commas.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Groups {
    pub(crate) primary: u32,
    pub(crate) others: Vec<u32>,
}

impl Default for SandboxUser {
    fn default() -> Self {
        Self {
            name: SANDBOX_NAME.to_owned(),
            home: HOME.to_owned(),
            shell: "/bin/sh".to_owned(),
            groups: Groups { primary: SANDBOX_ID, others: Vec::new() },
        }
    }
}

impl SandboxUser {
    /// Reads the user from the user and group files of the machine. A missing or unreadable entry gives the default.
    pub(crate) fn read() -> Self {
        let text = |path| read_limited(Path::new(path)).ok().flatten().unwrap_or_default();
        Self::parse(&text("/etc/passwd"), &text("/etc/group")).unwrap_or_default()
    }

    fn parse(users: &str, groups: &str) -> Option<Self> {
        let entry = users.lines().find_map(|line| Entry::parse(line).filter(|entry| entry.id == SANDBOX_ID))?;
        let primary = entry.group;
        let other = |line: &str| {
            let mut fields = line.split(':');
            let (id, members) = (fields.nth(2)?.parse().ok()?, fields.next()?);
            let is_member = members.split(',').any(|member| member.trim() == entry.name);
            (is_member && id != primary && id != u32::MAX).then_some(id)
        };
        let others = groups.lines().filter_map(other).take(GROUPS_MAX).collect();
        let shell = if entry.shell.is_empty() { "/bin/sh" } else { entry.shell };
        Some(Self {
            name: entry.name.to_owned(),
            home: entry.home.to_owned(),
            shell: shell.to_owned(),
            groups: Groups { primary, others },
        })
    }
}

impl Groups {
    /// Returns the groups as one argument, the primary group first.
    pub(crate) fn argument(&self) -> String {
        let numbers: Vec<_> = [self.primary].iter().chain(&self.others).map(u32::to_string).collect();
        numbers.join(",")
    }

    /// Parses the output of [`Groups::argument`].
    pub(crate) fn from_argument(text: &str) -> io::Result<Self> {
        let numbers: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
        let numbers = numbers.map_err(io::Error::other)?;
        let (primary, others) = numbers.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { primary: *primary, others: others.to_vec() })
    }
}

/// One line of a user file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) id: u32,
    pub(crate) group: u32,
    pub(crate) home: &'a str,
    pub(crate) shell: &'a str,
}

impl<'a> Entry<'a> {
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password, id, group) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (_comment, home, shell) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
        let (id, group) = (id.parse().ok()?, group.parse().ok()?);
        // The kernel uses the highest number as "no group".
        (!name.is_empty() && group != u32::MAX).then_some(Self { name, id, group, home, shell: shell.trim_end() })
    }
}

/// Reads a configuration file; `None` if it is larger than [`FILE_BYTES_MAX`]. A missing file is empty, and so is
/// everything that is not a regular file.
pub(crate) fn read_limited(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    // Without the flag, a pipe without a writer would block.
    match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Ok(file) if !file.metadata()?.is_file() => {}
        Ok(file) => drop(file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    Ok((bytes.len() as u64 <= FILE_BYTES_MAX).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Returns whether the sandbox user can write to the folder, as far as its owner and its mode for others say.
pub(crate) fn can_write(folder: &Path) -> bool {
    let writable = |meta: fs::Metadata| meta.uid() == SANDBOX_ID || meta.permissions().mode() & 0o002 != 0;
    fs::metadata(folder).is_ok_and(writable)
}

/// Resolves a path of a call, which is absolute or relative to the home. As in a shell, `~` is the home.
pub(crate) fn from_home(path: &str) -> PathBuf {
    let path = match path.strip_prefix('~') {
        Some("") => ".",
        Some(rest) => rest.strip_prefix('/').map_or(path, |below| below.trim_start_matches('/')),
        None => path,
    };
    Path::new(HOME).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:100:Node,,,:/home/node:/bin/bash\nsandbox:x:1000:1::/:\n";

    #[test]
    fn first_user_with_the_number_is_used_with_its_groups() {
        let groups =
            "root:x:0:\nusers:x:100:node\naudio:x:29:node,other\nvideo:x:44:anode\nbad:x:y:node\nlast:x:999:other,node";
        let user = SandboxUser::parse(USERS, groups).unwrap();
        assert_eq!((user.name.as_str(), user.home.as_str(), user.shell.as_str()), ("node", "/home/node", "/bin/bash"));
        assert_eq!(user.groups, Groups { primary: 100, others: vec![29, 999] });
        assert_eq!(Groups::from_argument(&user.groups.argument()).unwrap(), user.groups);
    }

    #[test]
    fn user_without_a_shell_gets_the_default_shell() {
        let user = SandboxUser::parse("a:x:1000:1000::/home/a:", "").unwrap();
        assert_eq!(user.shell, "/bin/sh");
        assert_eq!(SandboxUser::parse("a:x:1001:1000::/home/a:", ""), None);
    }

    #[test]
    fn rejects_groups_that_are_not_numbers() {
        let fault = |text| Groups::from_argument(text).unwrap_err().to_string();
        assert_eq!(fault("1000,x"), "invalid digit found in string");
        assert_eq!(fault(""), "cannot parse integer from empty string");
    }

    #[test]
    fn tilde_is_the_home_only_as_a_whole_component() {
        for (path, expected) in [
            ("~", "/home/sandbox/."),
            ("~/", "/home/sandbox/"),
            ("~/a", "/home/sandbox/a"),
            ("~//a", "/home/sandbox/a"),
            ("~a", "/home/sandbox/~a"),
            ("./~", "/home/sandbox/./~"),
            ("/~/a", "/~/a"),
            ("a", "/home/sandbox/a"),
        ] {
            assert_eq!(from_home(path), Path::new(expected), "{path}");
        }
    }
}
