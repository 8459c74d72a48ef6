// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes login shells find what other commands find. Debian's and Alpine's `/etc/profile` replace the search path.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

use super::replace::replace;
use crate::{
    command_settings::search_path,
    console::{report, with_cause},
    sandbox_user::{SANDBOX_ID, read_limited},
    step::{StepFault, WithStep},
};

const PROFILE: &str = "/etc/profile";

/// The script for login shells. Profiles run the scripts of this folder in alphabetical order, so it is the last one.
const SCRIPT: &str = "/etc/profile.d/zz-waggle.sh";

/// Writes the script, with the image's search path. Without `/etc/profile`, nothing replaces the search path. An error
/// is only reported, because all other commands work without the script.
pub(super) fn keep_search_path(path: &str) {
    if Path::new(PROFILE).is_file()
        && let Err(fault) = add_script(path)
    {
        report(&with_cause(&fault));
    }
}

fn add_script(path: &str) -> Result<(), StepFault> {
    replace(SCRIPT, &script(path))?;
    run_script().step(|| format!("add {SCRIPT} to {PROFILE}"))
}

/// Adds the script to a profile that does not run the scripts of the folder.
fn run_script() -> io::Result<()> {
    let Some(profile) = read_limited(Path::new(PROFILE))? else { return Ok(()) };
    if profile.lines().any(|line| !line.trim_start().starts_with('#') && line.contains("profile.d")) {
        return Ok(());
    }
    let mut file = OpenOptions::new().append(true).open(PROFILE)?;
    file.write_all(format!("\n. {SCRIPT}\n").as_bytes())
}

/// Returns a POSIX script. It changes nothing if the search path already has all folders; otherwise the search path
/// becomes that of other commands, followed by the folders that the profile has added.
fn script(path: &str) -> String {
    let quoted = format!("'{}'", path.replace('\'', r"'\''"));
    let users = search_path("$HOME", "$waggle_path");
    format!(
        r#"# Login shells have the search path of other commands.
waggle_path={quoted}
if [ "$(id -u 2>/dev/null)" = {SANDBOX_ID} ]; then waggle_path="{users}"; fi
waggle_missing=
waggle_rest=$waggle_path:
while [ -n "$waggle_rest" ]; do
  case ":$PATH:" in *":${{waggle_rest%%:*}}:"*) ;; *) waggle_missing=1 ;; esac
  waggle_rest=${{waggle_rest#*:}}
done
if [ -n "$waggle_missing" ]; then
  waggle_rest=$PATH:
  while [ -n "$waggle_rest" ]; do
    case ":$waggle_path::" in
      *":${{waggle_rest%%:*}}:"*) ;;
      *) waggle_path=$waggle_path:${{waggle_rest%%:*}} ;;
    esac
    waggle_rest=${{waggle_rest#*:}}
  done
  PATH=$waggle_path
  export PATH
fi
unset waggle_path waggle_missing waggle_rest
"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs the script with a search path, and returns the new one.
    fn check(image: &str, path: &str, expected: &str) {
        let code = format!("PATH='{path}'\n{}\necho \"$PATH\"", script(image).replace("$(id -u 2>/dev/null)", "1000"));
        let ran = Command::new("/bin/sh").args(["-euc", &code]).env("HOME", "/h").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
        assert_eq!(String::from_utf8_lossy(&ran.stdout).trim_end(), expected);
    }

    #[test]
    fn replaced_search_path_becomes_that_of_other_commands() {
        let own = "/h/venv/bin:/h/.local/bin";
        let last = "/h/node_modules/.bin";
        check("/opt/it's/bin:/bin", "/usr/bin:/bin", &format!("{own}:/opt/it's/bin:/bin:{last}:/usr/bin"));
        check("/bin", "", &format!("{own}:/bin:{last}"));
        // Empty components are not added.
        check("/bin", "/usr/bin::", &format!("{own}:/bin:{last}:/usr/bin"));
    }

    #[test]
    fn complete_search_path_is_not_changed() {
        let path = "/first:/bin:/h/.local/bin:/h/venv/bin:/h/node_modules/.bin";
        check("/bin", path, path);
    }
}
