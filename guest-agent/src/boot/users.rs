// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The sandbox user's entries in the user and group files, and its home.
//!
//! The image's user with the sandbox user's number keeps its name, home and groups, and [`HOME`] becomes a link to its
//! home. An image's user `sandbox` with another number gets the sandbox user's number. An image with neither gets a
//! new user.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, chown, symlink},
    path::Path,
};

use super::{folder::make_folder, replace::remove_unless_file};
use crate::{
    console::{report, with_cause},
    sandbox_user::{Entry, HOME, SANDBOX_ID, SANDBOX_NAME, read_limited},
    step::{StepFault, WithStep},
};

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// Makes the entries of the sandbox user, and a home that [`HOME`] leads to.
pub(super) fn set_up_sandbox_user() -> Result<(), StepFault> {
    // Without its entries, the user works, but programs find no name for it. The cause is a folder in place of a file.
    let group = add_user().unwrap_or_else(|fault| {
        report(&with_cause(&fault));
        SANDBOX_ID
    });
    if let Err(fault) = add_group(group) {
        report(&with_cause(&fault));
    }
    make_folder(HOME)?;
    chown(HOME, Some(SANDBOX_ID), Some(group)).step(|| format!("change the owner of {HOME} to {SANDBOX_NAME}"))
}

/// Makes the sandbox user's entry in the user file, and returns the user's primary group.
fn add_user() -> Result<u32, StepFault> {
    remove_unless_file(USERS)?;
    let users = read_limited(Path::new(USERS)).step(|| format!("read {USERS}"))?;
    // A file that is too large is left alone; the user then has the default entry without a line in the file.
    let Some(users) = users else { return Ok(SANDBOX_ID) };
    let made = with_sandbox_user(&users, link_home);
    write_users(&users, &made.text).step(|| format!("write the sandbox user's entry to {USERS}"))?;
    Ok(made.group)
}

/// Changes the user file from the text `old` to the text `new`.
fn write_users(old: &str, new: &str) -> io::Result<()> {
    match new.strip_prefix(old) {
        Some("") => Ok(()),
        Some(added) => OpenOptions::new().create(true).append(true).open(USERS)?.write_all(added.as_bytes()),
        // The file is not UTF-8. Without the change, the user has another home or number in this file only.
        None if old.contains(char::REPLACEMENT_CHARACTER) => Ok(()),
        // The file keeps its mode, and may be a link.
        None => fs::write(USERS, new),
    }
}

/// A user file with an entry of the sandbox user, and the primary group of that entry.
#[derive(Debug, Eq, PartialEq)]
struct UserFile {
    text: String,
    group: u32,
}

/// Returns the file `users` with an entry of the sandbox user. `link` makes [`HOME`] lead to the home of the image's
/// own user; if it returns false, the home becomes [`HOME`].
fn with_sandbox_user(users: &str, link: impl FnOnce(&str) -> bool) -> UserFile {
    let entries: Vec<_> = users.lines().map(|line| (line, Entry::parse(line))).collect();
    let found =
        |accept: &dyn Fn(&Entry<'_>) -> bool| entries.iter().position(|(_, entry)| entry.as_ref().is_some_and(accept));
    let own = found(&|entry| entry.id == SANDBOX_ID);
    let named = found(&|entry| entry.name == SANDBOX_NAME);
    let (position, entry) = match own.or(named).and_then(|at| Some((at, entries.get(at)?.1?))) {
        Some(found) => found,
        None => {
            let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
            let gap = if users.is_empty() || users.ends_with('\n') { "" } else { "\n" };
            let line = format!("{SANDBOX_NAME}:x:{SANDBOX_ID}:{SANDBOX_ID}::{HOME}:{shell}\n");
            return UserFile { text: format!("{users}{gap}{line}"), group: SANDBOX_ID };
        }
    };
    let has_home = entry.home == HOME || (own.is_some() && link(entry.home));
    if has_home && entry.id == SANDBOX_ID {
        return UserFile { text: users.to_owned(), group: entry.group };
    }
    let home = if has_home { entry.home } else { HOME };
    let changed = entries.iter().enumerate().map(|(at, (line, _))| {
        let mut fields: Vec<_> = line.split(':').map(str::to_owned).collect();
        if at == position {
            for (field, value) in [(2, SANDBOX_ID.to_string()), (5, home.to_owned())] {
                if let Some(field) = fields.get_mut(field) {
                    *field = value;
                }
            }
        }
        fields.join(":") + "\n"
    });
    UserFile { text: changed.collect(), group: entry.group }
}

/// Makes [`HOME`] a link to the image's `home`. Returns false, and changes nothing, if that home is not usable or if
/// [`HOME`] contains files.
fn link_home(home: &str) -> bool {
    let path = Path::new(home);
    let is_usable = match fs::metadata(path) {
        Ok(meta) => meta.is_dir() && meta.uid() == SANDBOX_ID,
        // Only below /home, which is /var/home in images of ostree, a missing home is created: `/nonexistent` is the
        // usual home of users without one.
        Err(_) => ["/home", "/var/home"].iter().any(|homes| path.starts_with(homes) && path != Path::new(homes)),
    };
    if !path.is_absolute() || path == Path::new("/") || path.starts_with(HOME) || !is_usable {
        return false;
    }
    let link = || -> io::Result<()> {
        match fs::symlink_metadata(HOME) {
            // Fails if the folder contains files.
            Ok(meta) if meta.is_dir() => fs::remove_dir(HOME)?,
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
            Err(fault) => return Err(fault),
        }
        make_folder(home).map_err(io::Error::other)?;
        make_folder("/home").map_err(io::Error::other)?;
        symlink(path, HOME)
    };
    // Where /home is a link, the two may be the same folder.
    if fs::canonicalize(HOME).is_ok_and(|own| fs::canonicalize(path).is_ok_and(|image| image == own)) {
        return true;
    }
    // An image that was made from an environment has the link already.
    if fs::read_link(HOME).is_ok_and(|target| target == path) {
        return make_folder(home).is_ok();
    }
    link().is_ok()
}

/// Adds a group to the group file, unless the file has a group with that number or cannot hold the name.
fn add_group(id: u32) -> Result<(), StepFault> {
    remove_unless_file(GROUPS)?;
    let groups = read_limited(Path::new(GROUPS)).step(|| format!("read {GROUPS}"))?;
    let Some(groups) = groups else { return Ok(()) };
    let field = |at: usize, value: &str| groups.lines().any(|line| line.split(':').nth(at) == Some(value));
    if field(2, &id.to_string()) || field(0, SANDBOX_NAME) {
        return Ok(());
    }
    let gap = if groups.is_empty() || groups.ends_with('\n') { "" } else { "\n" };
    let add = || {
        let mut file = OpenOptions::new().create(true).append(true).open(GROUPS)?;
        file.write_all(format!("{gap}{SANDBOX_NAME}:x:{id}:\n").as_bytes())
    };
    add().step(|| format!("add {SANDBOX_NAME} to {GROUPS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(users: &str, links: bool, expected: &str, group: u32) {
        let made = with_sandbox_user(users, |_home| links);
        assert_eq!((made.text.as_str(), made.group), (expected, group));
    }

    #[test]
    fn user_of_the_image_keeps_its_entry() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/zsh";
        check(users, true, users, 1001);
        // With an unusable home, only the home changes.
        check(users, false, "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/sandbox:/bin/zsh\n", 1001);
        let users = "sandbox:x:1000:1000::/home/sandbox:/bin/sh\n";
        check(users, false, users, 1000);
    }

    #[test]
    fn user_named_sandbox_gets_the_number() {
        check("sandbox:x:1001:1002::/srv:/bin/zsh\n", true, "sandbox:x:1000:1002::/home/sandbox:/bin/zsh\n", 1002);
        // The image's user with the number has priority.
        let users = "sandbox:x:1001:1001::/home/sandbox:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n";
        check(users, true, users, 1000);
    }

    #[test]
    fn missing_user_is_added_after_the_last_line() {
        let made = with_sandbox_user("a:x:100:1000::/:/bin/sh", |_home| true);
        let lines: Vec<_> = made.text.lines().collect();
        assert_eq!(lines[0], "a:x:100:1000::/:/bin/sh");
        assert!(lines[1].starts_with("sandbox:x:1000:1000::/home/sandbox:/bin/"));
        assert_eq!((lines.len(), made.group), (2, 1000));
        assert!(with_sandbox_user("", |_home| true).text.starts_with("sandbox:x:1000:"));
    }
}
