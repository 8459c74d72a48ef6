// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The environment variables of the settings.

use std::ffi::{OsStr, OsString};

/// The prefix of each variable of the settings.
const PREFIX: &str = "WAGGLE_";

/// Variables of an earlier version that no longer have an effect.
const RETIRED: [&str; 5] = ["SSH_PORT_BASE", "SSH_PORT_MAX", "RUNNER_PATH", "INIT_PATH", "LIB_DIR"];

/// A function that returns the value of a variable, or `None` if the variable is unset.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Looks a variable up in the process's environment.
#[must_use]
pub fn process_variable(name: &str) -> Option<OsString> {
    std::env::var_os(OsStr::new(name))
}

/// Returns a warning for each variable that is set and no longer has an effect.
#[must_use]
pub fn warnings(variable: Lookup<'_>) -> Vec<String> {
    let set = RETIRED.iter().map(|name| format!("{PREFIX}{name}")).filter(|name| variable(name).is_some());
    set.map(|name| format!("{name} no longer has an effect; unset it")).collect()
}

/// Returns the name of the variable for the setting with this clap id.
pub(super) fn variable_name(id: &str) -> String {
    format!("{PREFIX}{}", id.to_ascii_uppercase())
}
