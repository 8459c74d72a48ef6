// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The defences inside a guest, and the set of those that the operator has switched off.

use std::{fmt, str::FromStr};

/// A defence around user code in a guest. The machine isolates the guest from the host; these defences keep user code
/// away from the agent and from rarely used parts of the guest's kernel.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Defence {
    /// Separate namespaces: user code can neither see nor signal the agent.
    Namespaces,
    /// The capability bounding set: the guest's root has few capabilities.
    Capabilities,
    /// `no_new_privs`: set-user-id programs gain no privileges. `Filter` requires this defence and is off without it.
    NoNewPrivileges,
    /// The system call filter: blocks vsock, modules, mounts, kexec and user namespaces.
    Filter,
}

impl Defence {
    /// All defences, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Namespaces, Self::Capabilities, Self::NoNewPrivileges, Self::Filter];

    /// Returns the name of the defence in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Filter => "filter",
        }
    }
}

/// The defences that are switched off; empty by default.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Relaxed(Vec<Defence>);

impl Relaxed {
    /// Whether a defence is switched off.
    #[must_use]
    pub fn contains(&self, defence: Defence) -> bool {
        self.0.contains(&defence)
    }

    /// Whether all defences are on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An unknown defence.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown defence {word:?}; must be `all`, or a comma-separated list of these: {}", names())]
pub struct UnknownDefence {
    /// The unknown name.
    pub word: String,
}

fn names() -> String {
    Defence::ALL.map(Defence::name).join(", ")
}

impl FromStr for Relaxed {
    type Err = UnknownDefence;

    fn from_str(text: &str) -> Result<Self, UnknownDefence> {
        let mut off = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match Defence::ALL.into_iter().find(|defence| defence.name() == word) {
                Some(defence) => off.push(defence),
                None if word == "all" => off.extend(Defence::ALL),
                None => return Err(UnknownDefence { word: word.to_owned() }),
            }
        }
        off.sort_unstable();
        off.dedup();
        Ok(Self(off))
    }
}

impl fmt::Display for Relaxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|defence| defence.name()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_of_defences_and_all() {
        assert_eq!("filter, namespaces".parse(), Ok(Relaxed(vec![Defence::Namespaces, Defence::Filter])));
        assert_eq!("all".parse(), Ok(Relaxed(Defence::ALL.to_vec())));
        assert_eq!("".parse(), Ok(Relaxed::default()));
        assert_eq!("filters".parse::<Relaxed>(), Err(UnknownDefence { word: "filters".to_owned() }));
    }
}
