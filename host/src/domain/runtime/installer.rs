// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Package managers in guests, and the commands with which they install packages.
//!
//! An installation that is killed leaves half-installed packages behind, with which most package managers refuse to
//! work. The next installation therefore repairs them first.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Whether the command installs the packages. The commands before it prepare that, or repair what an earlier
    /// installation left.
    pub installs: bool,
}

/// An installation that was killed and has not been repaired. Several ones count as one that lasted from the beginning
/// of the first to the end of the last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KilledInstallation {
    pub began: SystemTime,
    pub ended: SystemTime,
}

impl KilledInstallation {
    /// Returns the time in which the installation may have changed files, in seconds since 1970 of the guest's clock.
    fn window(&self) -> [u64; 2] {
        let [began, ended] = [self.began, self.ended].map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
        [began.saturating_sub(CLOCK_SLACK).as_secs(), ended.saturating_add(CLOCK_SLACK).as_secs()]
    }
}

/// A script that chooses or creates the Python environment for the packages, and runs pip in that environment.
const PIP_SCRIPT: &str = include_str!("pip_install.py");

/// A script that removes what a killed npm left.
const NPM_REPAIR: &str = include_str!("npm_repair.js");

/// A script that updates the package lists, and completes what a killed dpkg left.
const DPKG_PREPARE: &str = include_str!("dpkg_prepare.sh");

/// A script that repairs the data base of a killed rpm.
const RPM_REPAIR: &str = include_str!("rpm_repair.sh");

/// Maximum difference between the clock of a guest and the clock of its host.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The search path of root's commands. The image's may begin with folders that the sandbox user can write to.
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

    /// Returns the commands that install the packages; only the last one installs. `killed` is an earlier installation
    /// of packages of the same kind.
    #[must_use]
    pub fn steps(&self, packages: &[PackageName], killed: Option<KilledInstallation>) -> Vec<Step> {
        let names: Vec<_> = packages.iter().map(PackageName::as_str).collect();
        let window = killed.map(|killed| killed.window());
        let system = |words: &[&str]| install(command(words, &names, User::Root));
        let rpm = |words: &[&str]| {
            let repair = script("sh", "sh", RPM_REPAIR.to_owned(), User::Root);
            // A kill would leave the data base as the repair found it, or worse.
            let repair = killed.map(|_| Step { finishes: true, ..prepare(repair) });
            repair.into_iter().chain([system(words)]).collect()
        };
        match self {
            Self::Pip => vec![install(pip(&names, window))],
            Self::Npm => {
                let words = ["npm", "install", "--prefix", SANDBOX_HOME, "--no-audit", "--no-fund"];
                let repair =
                    |[began, ended]: [u64; 2]| format!("const [BEGAN, ENDED] = [{began}, {ended}];\n{NPM_REPAIR}");
                let repair = window.map(|window| prepare(script("node", "js", repair(window), User::Sandbox)));
                repair.into_iter().chain([install(command(&words, &names, User::Sandbox))]).collect()
            }
            Self::Apk => vec![system(&["apk", "add", "--no-cache"])],
            Self::AptGet => {
                let was_killed = if killed.is_some() { "yes" } else { "no" };
                let code = format!("WAS_KILLED={was_killed}\n{DPKG_PREPARE}");
                // After a kill, it configures and installs packages.
                let finishes = killed.is_some();
                let prepare = Step { finishes, ..prepare(script("sh", "sh", code, User::Root)) };
                // Without the option, a name that does not exist is a regular expression.
                let words = ["install", "-q", "-y", "--no-install-recommends", "-o", "APT::Cmd::Pattern-Only=true"];
                let mut steps = vec![prepare, system(&[&["apt-get"], &words[..]].concat())];
                let quiet = variable("DEBIAN_FRONTEND", "noninteractive");
                steps.iter_mut().for_each(|step| step.command.env.push(quiet.clone()));
                steps
            }
            Self::Dnf => rpm(&["dnf", "install", "-y"]),
            Self::Yum => rpm(&["yum", "install", "-y"]),
            Self::Zypper => rpm(&["zypper", "--non-interactive", "install"]),
            Self::Operator { command: line, user } => {
                let words: Vec<_> = line.words().iter().map(String::as_str).collect();
                vec![install(command(&words, &names, *user))]
            }
        }
    }
}

/// Returns the step that installs. Only root's can change the image's own packages.
fn install(command: Command) -> Step {
    Step { finishes: command.user == User::Root, command, installs: true }
}

/// Returns a step that a cancellation kills at once.
fn prepare(command: Command) -> Step {
    Step { command, finishes: false, installs: false }
}

fn pip(names: &[&str], killed: Option<[u64; 2]>) -> Command {
    // Package names contain no character that must be escaped in a Python string.
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let killed = killed.map_or_else(|| "None".to_owned(), |[began, ended]| format!("({began}, {ended})"));
    let code = format!("PACKAGES = [{}]\nKILLED = {killed}\n{PIP_SCRIPT}", names.join(", "));
    let mut command = script("python3", "py", code, User::Sandbox);
    command.env.extend([variable("PIP_DISABLE_PIP_VERSION_CHECK", "1"), variable("PIP_NO_INPUT", "1")]);
    command
}

fn script(interpreter: &str, extension: &'static str, code: String, user: User) -> Command {
    let script = Some(Script { extension, code: code.into_bytes(), loader: None });
    Command { script, ..command(&[interpreter], &[], user) }
}

fn command(words: &[&str], names: &[&str], user: User) -> Command {
    let argv = words.iter().chain(names).map(|word| (*word).to_owned()).collect();
    let env = if user == User::Root { vec![variable("PATH", ROOT_PATH)] } else { Vec::new() };
    Command { argv, user, env, ..Command::default() }
}

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::package_name::parse_packages;

    fn steps(installer: &Installer, names: &str, killed: Option<KilledInstallation>) -> Vec<Step> {
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
        let install = "apt-get install -q -y --no-install-recommends -o APT::Cmd::Pattern-Only=true a b==1";
        assert_eq!(lines(&steps), ["sh", install]);
        assert!(code(&steps[0]).starts_with("WAS_KILLED=no\n") && code(&steps[0]).contains("apt-get update"));
        let quiet = variable("DEBIAN_FRONTEND", "noninteractive");
        assert!(steps.iter().all(|step| step.command.env.contains(&quiet)));
    }

    fn killed() -> Option<KilledInstallation> {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 500);
        Some(KilledInstallation { began: at(1000), ended: at(1060) })
    }

    fn operator(user: User) -> Installer {
        Installer::Operator { command: "/opt/install".parse().unwrap(), user }
    }

    #[test]
    fn each_command_of_root_has_a_search_path_that_only_root_can_change() {
        let path = variable("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let all = [
            Installer::Pip,
            Installer::Npm,
            Installer::Apk,
            Installer::AptGet,
            Installer::Dnf,
            Installer::Yum,
            Installer::Zypper,
            operator(User::Root),
            operator(User::Sandbox),
        ];
        for installer in all {
            for step in [steps(&installer, "a", None), steps(&installer, "a", killed())].concat() {
                let is_of_root = step.command.user == User::Root;
                assert_eq!(step.command.env.contains(&path), is_of_root, "{installer:?}");
            }
        }
    }

    #[test]
    fn only_what_changes_system_packages_finishes_after_a_cancellation() {
        let finishes = |installer: &Installer, killed| {
            steps(installer, "a", killed).iter().map(|step| step.finishes).collect::<Vec<_>>()
        };
        assert_eq!(finishes(&Installer::AptGet, None), [false, true]);
        assert_eq!(finishes(&Installer::AptGet, killed()), [true, true]);
        assert_eq!(finishes(&Installer::Apk, killed()), [true]);
        for installer in [Installer::Dnf, Installer::Yum, Installer::Zypper] {
            assert_eq!(finishes(&installer, None), [true]);
            assert_eq!(finishes(&installer, killed()), [true, true]);
        }
        assert_eq!(finishes(&Installer::Pip, killed()), [false]);
        assert_eq!(finishes(&Installer::Npm, killed()), [false, false]);
        assert_eq!(finishes(&operator(User::Root), None), [true]);
        assert_eq!(finishes(&operator(User::Sandbox), None), [false]);
    }

    #[test]
    fn pip_script_gets_packages_as_python_strings() {
        let steps = steps(&Installer::Pip, "a[x]>=1,<2 b", None);
        assert!(code(&steps[0]).starts_with("PACKAGES = [\"a[x]>=1,<2\", \"b\"]\nKILLED = None\n"));
        assert_eq!((steps[0].command.user, steps.len()), (User::Sandbox, 1));
    }

    #[test]
    fn repair_comes_first_after_a_kill() {
        let installs = |steps: &[Step]| steps.iter().map(|step| step.installs).collect::<Vec<_>>();
        let pip = steps(&Installer::Pip, "a", killed());
        assert!(code(&pip[0]).contains("\nKILLED = (998, 1062)\n"));
        assert_eq!(installs(&pip), [true]);
        let npm = steps(&Installer::Npm, "a", killed());
        assert!(code(&npm[0]).starts_with("const [BEGAN, ENDED] = [998, 1062];\n"));
        assert_eq!(installs(&npm), [false, true]);
        let apt = steps(&Installer::AptGet, "a", killed());
        assert!(code(&apt[0]).starts_with("WAS_KILLED=yes\n"));
        assert_eq!(installs(&apt), [false, true]);
        let dnf = steps(&Installer::Dnf, "a", killed());
        assert_eq!(lines(&dnf), ["sh", "dnf install -y a"]);
        assert_eq!(installs(&dnf), [false, true]);
    }
}
