// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Package managers in guests, and the commands with which they install packages.
//!
//! An installation that is killed leaves half-installed packages behind, with which most package managers refuse to
//! work. The next installation therefore repairs them first.

use std::time::Duration;

use super::CommandLine;
use crate::domain::{
    command::{Command, Script, User},
    guest_path::SANDBOX_HOME,
    package_name::PackageName,
};

/// A package manager in a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Installer {
    /// pip; in a virtual environment if the system's Python is externally managed (PEP 668).
    Pip,
    /// npm, which installs into `node_modules` in the home folder.
    Npm,
    /// The package manager of Alpine.
    Apk,
    /// The package manager of Debian.
    AptGet,
    /// The package manager of Fedora.
    Dnf,
    /// The package manager of older Red Hat versions.
    Yum,
    /// The package manager of SUSE.
    Zypper,
    /// The operator's command.
    Operator {
        /// The command, to which the names of the packages are appended.
        command: CommandLine,
        /// The user that runs the command.
        user: User,
    },
}

/// One command of an installation. Each command must run only after the previous one has succeeded.
#[derive(Clone, Debug)]
pub struct Step {
    pub command: Command,
    /// Whether the command needs time after a cancellation, because a kill would leave half-installed packages.
    pub finishes: bool,
}

/// A script that chooses or creates the Python environment for the packages, and runs pip in that environment.
const PIP_SCRIPT: &str = include_str!("pip_install.py");

/// A script that removes what a killed npm left.
const NPM_REPAIR: &str = include_str!("npm_repair.js");

/// A script that updates the package lists, and completes what a killed dpkg left.
const DPKG_PREPARE: &str = include_str!("dpkg_prepare.sh");

/// A script that repairs the data base of a killed rpm.
const RPM_REPAIR: &str = include_str!("rpm_repair.sh");

/// The time by which a killed installation may appear younger in the guest than on the host, whose clocks differ.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

impl Installer {
    /// The programs that the package manager needs in the guest. pip runs as `python3 -m pip`, so only `python3` is
    /// required.
    pub(super) fn programs(&self) -> &'static [&'static str] {
        match self {
            Self::Pip => &["python3"],
            Self::Npm => &["npm"],
            Self::Apk => &["apk"],
            Self::AptGet => &["apt-get"],
            Self::Dnf => &["dnf"],
            Self::Yum => &["yum"],
            Self::Zypper => &["zypper"],
            Self::Operator { .. } => &[],
        }
    }

    /// Returns the commands that install the packages. `killed` is the age of an earlier installation that was killed
    /// and has not been repaired.
    #[must_use]
    pub fn steps(&self, packages: &[PackageName], killed: Option<Duration>) -> Vec<Step> {
        let names: Vec<_> = packages.iter().map(PackageName::as_str).collect();
        let seconds = killed.map(|age| age.saturating_add(CLOCK_SLACK).as_secs().to_string());
        let system = |words: &[&str]| Step { command: command(words, &names, User::Root), finishes: true };
        let rpm = |words: &[&str]| {
            let repair = killed.map(|_| quick(script("sh", "sh", RPM_REPAIR.to_owned(), User::Root)));
            repair.into_iter().chain([system(words)]).collect()
        };
        match self {
            Self::Pip => vec![quick(pip(&names, seconds))],
            Self::Npm => {
                let words = ["npm", "install", "--prefix", SANDBOX_HOME, "--no-audit", "--no-fund"];
                let install = quick(command(&words, &names, User::Sandbox));
                let repair = |seconds| format!("const KILLED_SECONDS = {seconds};\n{NPM_REPAIR}");
                let repair = seconds.map(|seconds| quick(script("node", "js", repair(seconds), User::Sandbox)));
                repair.into_iter().chain([install]).collect()
            }
            Self::Apk => vec![system(&["apk", "add", "--no-cache"])],
            Self::AptGet => {
                let was_killed = if killed.is_some() { "yes" } else { "no" };
                let code = format!("WAS_KILLED={was_killed}\n{DPKG_PREPARE}");
                let prepare = script("sh", "sh", code, User::Root);
                let install = system(&["apt-get", "install", "-q", "-y", "--no-install-recommends"]);
                let env = vec![variable("DEBIAN_FRONTEND", "noninteractive")];
                let quiet = |step: Step| Step { command: Command { env: env.clone(), ..step.command }, ..step };
                vec![quiet(quick(prepare)), quiet(install)]
            }
            Self::Dnf => rpm(&["dnf", "install", "-y"]),
            Self::Yum => rpm(&["yum", "install", "-y"]),
            Self::Zypper => rpm(&["zypper", "--non-interactive", "install"]),
            Self::Operator { command: line, user } => {
                let words: Vec<_> = line.words().iter().map(String::as_str).collect();
                vec![Step { command: command(&words, &names, *user), finishes: true }]
            }
        }
    }
}

/// Returns a step that a cancellation kills at once.
fn quick(command: Command) -> Step {
    Step { command, finishes: false }
}

fn pip(names: &[&str], killed_seconds: Option<String>) -> Command {
    // Package names contain no character that must be escaped in a Python string.
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let seconds = killed_seconds.unwrap_or_else(|| "None".to_owned());
    let code = format!("PACKAGES = [{}]\nKILLED_SECONDS = {seconds}\n{PIP_SCRIPT}", names.join(", "));
    let env = vec![variable("PIP_DISABLE_PIP_VERSION_CHECK", "1"), variable("PIP_NO_INPUT", "1")];
    Command { env, ..script("python3", "py", code, User::Sandbox) }
}

fn script(interpreter: &str, extension: &'static str, code: String, user: User) -> Command {
    let script = Some(Script { extension, code: code.into_bytes(), loader: None });
    Command { argv: vec![interpreter.to_owned()], script, user, ..Command::default() }
}

fn command(words: &[&str], names: &[&str], user: User) -> Command {
    let argv = words.iter().chain(names).map(|word| (*word).to_owned()).collect();
    Command { argv, user, ..Command::default() }
}

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::package_name::parse_packages;

    fn steps(installer: &Installer, names: &str, killed: Option<Duration>) -> Vec<Step> {
        installer.steps(&parse_packages(names).unwrap(), killed)
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.command.argv.join(" ")).collect()
    }

    fn code(step: &Step) -> &str {
        std::str::from_utf8(&step.command.script.as_ref().unwrap().code).unwrap()
    }

    #[test]
    fn package_managers_have_the_expected_commands() {
        for (installer, expected) in [
            (Installer::Npm, "npm install --prefix /home/sandbox --no-audit --no-fund a b==1"),
            (Installer::Apk, "apk add --no-cache a b==1"),
            (Installer::Dnf, "dnf install -y a b==1"),
            (Installer::Yum, "yum install -y a b==1"),
            (Installer::Zypper, "zypper --non-interactive install a b==1"),
        ] {
            let steps = steps(&installer, "a b==1", None);
            assert_eq!(lines(&steps), [expected]);
            assert_eq!(steps[0].command.user == User::Sandbox, installer == Installer::Npm);
        }
        let steps = steps(&Installer::AptGet, "a b==1", None);
        assert_eq!(lines(&steps), ["sh", "apt-get install -q -y --no-install-recommends a b==1"]);
        assert!(code(&steps[0]).starts_with("WAS_KILLED=no\n") && code(&steps[0]).contains("apt-get update"));
        assert!(steps.iter().all(|step| step.command.env == [variable("DEBIAN_FRONTEND", "noninteractive")]));
    }

    #[test]
    fn only_what_changes_system_packages_finishes_after_a_cancellation() {
        let finishes = |installer| steps(&installer, "a", None).iter().map(|step| step.finishes).collect::<Vec<_>>();
        assert_eq!(finishes(Installer::AptGet), [false, true]);
        for installer in [Installer::Apk, Installer::Dnf, Installer::Yum, Installer::Zypper] {
            assert_eq!(finishes(installer), [true]);
        }
        for installer in [Installer::Pip, Installer::Npm] {
            assert_eq!(finishes(installer), [false]);
        }
    }

    #[test]
    fn pip_script_gets_packages_as_python_strings() {
        let steps = steps(&Installer::Pip, "a[x]>=1,<2 b", None);
        assert!(code(&steps[0]).starts_with("PACKAGES = [\"a[x]>=1,<2\", \"b\"]\nKILLED_SECONDS = None\n"));
        assert_eq!((steps[0].command.user, steps.len()), (User::Sandbox, 1));
    }

    #[test]
    fn repair_comes_first_after_a_kill() {
        let killed = Some(Duration::from_secs(60));
        let pip = steps(&Installer::Pip, "a", killed);
        assert!(code(&pip[0]).contains("\nKILLED_SECONDS = 62\n"));
        let npm = steps(&Installer::Npm, "a", killed);
        assert!(code(&npm[0]).starts_with("const KILLED_SECONDS = 62;\n") && npm.len() == 2);
        let apt = steps(&Installer::AptGet, "a", killed);
        assert!(code(&apt[0]).starts_with("WAS_KILLED=yes\n") && apt.len() == 2);
        let dnf = steps(&Installer::Dnf, "a", killed);
        assert_eq!(lines(&dnf), ["sh", "dnf install -y a"]);
    }
}
