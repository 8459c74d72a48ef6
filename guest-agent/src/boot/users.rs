// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Adds the user `sandbox` to images that lack it: an entry in the user and group files, and a home.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::chown,
    path::Path,
};

use crate::{
    sandbox_user::{HOME, SANDBOX_ID, SANDBOX_NAME},
    step::{StepFault, WithStep},
};

/// Maximum size of a user or group file in bytes. Larger files are not changed.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Adds the user, its group and its home. An existing user or group with the same id is used instead.
pub(super) fn add_sandbox_user() -> Result<(), StepFault> {
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let user = format!("{SANDBOX_NAME}:x:{SANDBOX_ID}:{SANDBOX_ID}::{HOME}:{shell}\n");
    let group = format!("{SANDBOX_NAME}:x:{SANDBOX_ID}:\n");
    fs::create_dir_all("/etc").step(|| "create /etc".to_owned())?;
    for (path, line) in [("/etc/passwd", user), ("/etc/group", group)] {
        append_unless_taken(path, &line).step(|| format!("add {SANDBOX_NAME} to {path}"))?;
    }
    fs::create_dir_all(HOME).step(|| format!("create {HOME}"))?;
    chown(HOME, Some(SANDBOX_ID), Some(SANDBOX_ID)).step(|| format!("change the owner of {HOME} to {SANDBOX_NAME}"))
}

fn append_unless_taken(path: &str, line: &str) -> io::Result<()> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => return Ok(()),
        Ok(_) => String::from_utf8_lossy(&fs::read(path)?).into_owned(),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => String::new(),
        Err(fault) => return Err(fault),
    };
    if is_taken(&text) {
        return Ok(());
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    file.write_all(format!("{gap}{line}").as_bytes())
}

/// Returns whether an entry of a user or group file has the sandbox user's id. The id is the third field in both files.
fn is_taken(text: &str) -> bool {
    text.lines().any(|line| line.split(':').nth(2).is_some_and(|id| id == SANDBOX_ID.to_string()))
}

#[cfg(test)]
mod tests {
    use super::is_taken;

    #[test]
    fn taken_id_is_found_in_both_files() {
        assert!(is_taken("root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"));
        assert!(is_taken("staff:x:50:\nnode:x:1000:"));
        assert!(!is_taken("a:x:100:1000::/:/bin/sh\nb:x:10000:1::/:/bin/sh\n"));
        assert!(!is_taken(""));
    }
}
