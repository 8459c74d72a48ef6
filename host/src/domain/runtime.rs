// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runtimes, and which of a guest's programs run their code and install their packages.
//!
//! The order is: what the operator has set, then what the guest has, then an error that names what it lacks.

use std::{fmt, str::FromStr};

use super::{
    package_name::PackageName,
    ports::{Capabilities, User},
};

/// The home of the user that runs a client's code in every guest.
pub const SANDBOX_HOME: &str = "/home/sandbox";

/// What an environment is made for; a piece of code can name another one, if the guest has its interpreter.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Runtime {
    /// Python 3 and pip.
    Python,
    /// Node.js and npm.
    Node,
    /// A shell and the system's package manager.
    Shell,
}

impl Runtime {
    /// All of them, in the order in which clients see them.
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Shell];

    /// The word that clients use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Shell => "shell",
        }
    }

    /// The extension of its code files, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Python => "py",
            Self::Node => "js",
            Self::Shell => "sh",
        }
    }

    /// The interpreters that can run its code, best first.
    fn interpreters(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["python3"],
            Self::Node => &["node"],
            // Whoever writes a script without naming a shell mostly means this one.
            Self::Shell => &["bash", "sh"],
        }
    }

    /// The package managers that can serve it, best first.
    fn installers(self) -> &'static [Installer] {
        match self {
            Self::Python => &[Installer::Pip],
            Self::Node => &[Installer::Npm],
            Self::Shell => &[Installer::Apk, Installer::AptGet, Installer::Dnf, Installer::Yum, Installer::Zypper],
        }
    }

    /// Picks what runs its code.
    ///
    /// # Errors
    /// [`RuntimeFault::NoInterpreter`] if neither the operator nor the guest has one.
    pub fn interpreter(
        self,
        operator: Option<&CommandLine>,
        guest: &Capabilities,
    ) -> Result<Vec<String>, RuntimeFault> {
        if let Some(command) = operator {
            return Ok(command.words().to_vec());
        }
        let found = self.interpreters().iter().find(|program| guest.has(program));
        found
            .map(|program| vec![(*program).to_owned()])
            .ok_or(RuntimeFault::NoInterpreter { runtime: self, wanted: self.interpreters().join(" or ") })
    }

    /// Picks what installs its packages.
    ///
    /// # Errors
    /// [`RuntimeFault::NoInstaller`] if neither the operator nor the guest has one.
    pub fn installer(self, operator: Option<&CommandLine>, guest: &Capabilities) -> Result<Installer, RuntimeFault> {
        if let Some(command) = operator {
            let user = if self == Self::Shell { User::Root } else { User::Sandbox };
            return Ok(Installer::Operator { command: command.clone(), user });
        }
        let found = self.installers().iter().find(|installer| installer.programs().iter().all(|name| guest.has(name)));
        found.cloned().ok_or_else(|| {
            let wanted: Vec<_> = self.installers().iter().flat_map(|installer| installer.programs()).copied().collect();
            RuntimeFault::NoInstaller { runtime: self, wanted: wanted.join(" or ") }
        })
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One of something for each runtime.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ByRuntime<T> {
    /// [`Runtime::Python`]'s.
    pub python: T,
    /// [`Runtime::Node`]'s.
    pub node: T,
    /// [`Runtime::Shell`]'s.
    pub shell: T,
}

impl<T> ByRuntime<T> {
    /// The one of a runtime.
    pub fn of(&self, runtime: Runtime) -> &T {
        match runtime {
            Runtime::Python => &self.python,
            Runtime::Node => &self.node,
            Runtime::Shell => &self.shell,
        }
    }
}

/// What installs packages in a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Installer {
    /// Python's, in a virtual environment where the system's Python is managed externally (PEP 668).
    Pip,
    /// Node's, into the home's `node_modules`.
    Npm,
    /// Alpine's.
    Apk,
    /// Debian's.
    AptGet,
    /// Fedora's.
    Dnf,
    /// Older Red Hat's.
    Yum,
    /// SUSE's.
    Zypper,
    /// What the operator has set.
    Operator {
        /// The command; packages are added to its end.
        command: CommandLine,
        /// Who runs it.
        user: User,
    },
}

/// One command of an installation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstallStep {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Code that the program gets as a file, with the file's extension.
    pub script: Option<(&'static str, String)>,
    /// Variables that it needs.
    pub env: Vec<(String, String)>,
    /// Who runs it.
    pub user: User,
}

/// Makes or picks the Python that packages go into, and runs pip there.
const PIP_SCRIPT: &str = include_str!("runtime/pip_install.py");

impl Installer {
    /// The programs that the guest must have for it. pip is run as a module of a Python, so that it is the right one's.
    fn programs(&self) -> &'static [&'static str] {
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

    /// The command that installs the packages; or one before that, and it, to be run only if the first worked.
    #[must_use]
    pub fn steps(&self, packages: &[PackageName]) -> (InstallStep, Option<InstallStep>) {
        let as_root = |words: &[&str]| step(words, packages, User::Root);
        let only = match self {
            Self::Pip => {
                // The grammar of package names leaves nothing that would need an escape in a Python string.
                let names: Vec<_> = packages.iter().map(|name| format!("\"{name}\"")).collect();
                InstallStep {
                    argv: vec!["python3".to_owned()],
                    script: Some(("py", format!("PACKAGES = [{}]\n{PIP_SCRIPT}", names.join(", ")))),
                    env: vec![variable("PIP_DISABLE_PIP_VERSION_CHECK", "1"), variable("PIP_NO_INPUT", "1")],
                    user: User::Sandbox,
                }
            }
            Self::Npm => {
                step(&["npm", "install", "--prefix", SANDBOX_HOME, "--no-audit", "--no-fund"], packages, User::Sandbox)
            }
            Self::Apk => as_root(&["apk", "add", "--no-cache"]),
            Self::AptGet => {
                // Images are shipped without package lists, so nothing would be found before an update.
                let update = step(&["apt-get", "update", "-q"], &[], User::Root);
                let install = as_root(&["apt-get", "install", "-q", "-y", "--no-install-recommends"]);
                let quiet = variable("DEBIAN_FRONTEND", "noninteractive");
                let [update, install] = [update, install].map(|step| InstallStep { env: vec![quiet.clone()], ..step });
                return (update, Some(install));
            }
            Self::Dnf => as_root(&["dnf", "install", "-y"]),
            Self::Yum => as_root(&["yum", "install", "-y"]),
            Self::Zypper => as_root(&["zypper", "--non-interactive", "install"]),
            Self::Operator { command, user } => {
                let words: Vec<_> = command.words().iter().map(String::as_str).collect();
                step(&words, packages, *user)
            }
        };
        (only, None)
    }
}

fn step(words: &[&str], packages: &[PackageName], user: User) -> InstallStep {
    let names = packages.iter().map(PackageName::as_str);
    let argv = words.iter().copied().chain(names).map(str::to_owned).collect();
    InstallStep { argv, script: None, env: Vec::new(), user }
}

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A command that the operator has set: an absolute path and plain arguments, without a shell's quotes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// The program and its arguments.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for CommandLine {
    type Err = CommandLineFault;

    fn from_str(text: &str) -> Result<Self, CommandLineFault> {
        if !text.starts_with('/') {
            return Err(CommandLineFault::NotAbsolute);
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || " /._-+=:,@%".contains(*c))) {
            Some(character) => Err(CommandLineFault::NotPlain { character: character.escape_debug().to_string() }),
            None => Ok(Self(text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect())),
        }
    }
}

/// A text is no command.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandLineFault {
    /// It does not start with a path from the root.
    #[error("a command starts with an absolute path, such as /usr/bin/python3")]
    NotAbsolute,
    /// It has what only a shell would understand.
    #[error(
        "a command is a path and plain arguments separated by blanks; no shell reads it, so \"{character}\" has no meaning"
    )]
    NotPlain {
        /// The first such character, escaped.
        character: String,
    },
}

/// A runtime cannot be served.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RuntimeFault {
    /// Its code cannot be run.
    #[error("this environment cannot run {runtime} code: its image has no {wanted}")]
    NoInterpreter {
        /// The runtime.
        runtime: Runtime,
        /// What was looked for.
        wanted: String,
    },
    /// Its packages cannot be installed.
    #[error("this environment cannot install packages for {runtime}: its image has no {wanted}")]
    NoInstaller {
        /// The runtime.
        runtime: Runtime,
        /// What was looked for.
        wanted: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::package_name::parse_packages;

    fn guest(programs: &[&str]) -> Capabilities {
        Capabilities { programs: programs.iter().map(|name| (*name).to_owned()).collect(), ..Capabilities::default() }
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_operators_command_comes_before_the_guests() {
        let command: CommandLine = "/opt/py/bin/python -u".parse().unwrap();
        let chosen = Runtime::Python.interpreter(Some(&command), &guest(&["python3"]));
        assert_eq!(chosen, Ok(words("/opt/py/bin/python -u")));
        assert_eq!(Runtime::Python.interpreter(None, &guest(&["python3"])), Ok(words("python3")));
    }

    #[test]
    fn a_shell_script_runs_in_bash_where_there_is_one() {
        assert_eq!(Runtime::Shell.interpreter(None, &guest(&["sh", "bash"])), Ok(words("bash")));
        assert_eq!(Runtime::Shell.interpreter(None, &guest(&["sh"])), Ok(words("sh")));
    }

    #[test]
    fn what_the_guest_lacks_is_named() {
        let fault = Runtime::Node.interpreter(None, &guest(&["python3"])).unwrap_err();
        assert_eq!(fault.to_string(), "this environment cannot run node code: its image has no node");
        let fault = Runtime::Shell.installer(None, &guest(&["pip"])).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "this environment cannot install packages for shell: its image has no apk or apt-get or dnf or yum or zypper"
        );
    }

    #[test]
    fn the_systems_manager_runs_as_root_and_pip_and_npm_do_not() {
        let packages = parse_packages("a b==1").unwrap();
        for (installer, argv) in [
            (Installer::Npm, "npm install --prefix /home/sandbox --no-audit --no-fund a b==1"),
            (Installer::Apk, "apk add --no-cache a b==1"),
            (Installer::Dnf, "dnf install -y a b==1"),
            (Installer::Yum, "yum install -y a b==1"),
            (Installer::Zypper, "zypper --non-interactive install a b==1"),
        ] {
            let (step, None) = installer.steps(&packages) else { panic!("{installer:?} takes one step") };
            assert_eq!(step.argv, words(argv));
            assert_eq!(step.user == User::Sandbox, installer == Installer::Npm);
        }
        let (update, Some(install)) = Installer::AptGet.steps(&packages) else { panic!("apt-get takes two steps") };
        assert_eq!(update.argv, words("apt-get update -q"));
        assert_eq!(install.argv, words("apt-get install -q -y --no-install-recommends a b==1"));
    }

    #[test]
    fn pip_gets_its_packages_as_python_strings() {
        let (step, None) = Installer::Pip.steps(&parse_packages("a[x]>=1,<2 b").unwrap()) else { panic!("one step") };
        let (extension, code) = step.script.unwrap();
        assert_eq!(extension, "py");
        assert_eq!(code.lines().next(), Some("PACKAGES = [\"a[x]>=1,<2\", \"b\"]"));
        assert_eq!(step.user, User::Sandbox);
    }

    #[test]
    fn an_operators_command_has_no_shell_in_it() {
        assert_eq!("python3".parse::<CommandLine>(), Err(CommandLineFault::NotAbsolute));
        assert_eq!("".parse::<CommandLine>(), Err(CommandLineFault::NotAbsolute));
        for text in ["/bin/sh -c 'x'", "/a;b", "/a $HOME", "/a\nb", "/a|b"] {
            assert!(matches!(text.parse::<CommandLine>(), Err(CommandLineFault::NotPlain { .. })), "{text}");
        }
    }
}
