// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runtimes, and the choice of the programs that run their code and install their packages.
//!
//! The operator's command has priority over the guest's programs. If neither exists, the error names the missing
//! programs.

use std::{fmt, str::FromStr};

use super::{
    capabilities::Capabilities,
    command::{Command, Loader, Script, User},
    guest_path::SANDBOX_HOME,
    package_name::PackageName,
};

/// The default language and package manager of an environment. Code in another language runs if the guest has an
/// interpreter for it.
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
    /// All runtimes, in the order in which clients see them.
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Shell];

    /// Returns the name that clients use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Shell => "shell",
        }
    }

    /// Returns the extension of the runtime's code files, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Python => "py",
            Self::Node => "js",
            Self::Shell => "sh",
        }
    }

    /// The runtime's interpreters, best first.
    fn interpreters(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["python3"],
            Self::Node => &["node"],
            // Most scripts that name no shell are written for bash.
            Self::Shell => &["bash", "sh"],
        }
    }

    /// The runtime's package managers, best first.
    fn installers(self) -> &'static [Installer] {
        match self {
            Self::Python => &[Installer::Pip],
            Self::Node => &[Installer::Npm],
            Self::Shell => &[Installer::Apk, Installer::AptGet, Installer::Dnf, Installer::Yum, Installer::Zypper],
        }
    }

    /// Chooses the command that runs the runtime's code.
    ///
    /// # Errors
    /// [`RuntimeFault::NoInterpreter`] if neither the operator nor the guest has an interpreter.
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

    /// Returns the loader that makes the interpreter run code as if the code's file were in the working directory;
    /// `None` if there is none for this program, such as a shell, or an operator's program with another name.
    #[must_use]
    pub fn loader(interpreter: &[String]) -> Option<Loader> {
        let program = interpreter.first()?.rsplit('/').next()?;
        match program {
            "node" | "nodejs" => Some(Loader::Node),
            _ if program.starts_with("python") => Some(Loader::Python),
            _ => None,
        }
    }

    /// Chooses the package manager of the runtime.
    ///
    /// # Errors
    /// [`RuntimeFault::NoInstaller`] if neither the operator nor the guest has a package manager.
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

/// One value for each runtime.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ByRuntime<T> {
    pub python: T,
    pub node: T,
    pub shell: T,
}

impl<T> ByRuntime<T> {
    pub fn of(&self, runtime: Runtime) -> &T {
        match runtime {
            Runtime::Python => &self.python,
            Runtime::Node => &self.node,
            Runtime::Shell => &self.shell,
        }
    }
}

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

/// A script that chooses or creates the Python environment for the packages, and runs pip in that environment.
const PIP_SCRIPT: &str = include_str!("runtime/pip_install.py");

impl Installer {
    /// The programs that the package manager needs in the guest. pip runs as `python3 -m pip`, so only `python3` is
    /// required.
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

    /// Returns one or two commands that install the packages. The second command must run only after the first has
    /// succeeded.
    #[must_use]
    pub fn steps(&self, packages: &[PackageName]) -> (Command, Option<Command>) {
        let as_root = |words: &[&str]| step(words, packages, User::Root);
        let only = match self {
            Self::Pip => {
                // Package names contain no character that must be escaped in a Python string.
                let names: Vec<_> = packages.iter().map(|name| format!("\"{name}\"")).collect();
                let code = format!("PACKAGES = [{}]\n{PIP_SCRIPT}", names.join(", ")).into_bytes();
                Command {
                    argv: vec!["python3".to_owned()],
                    script: Some(Script { extension: "py", code, loader: None }),
                    env: vec![variable("PIP_DISABLE_PIP_VERSION_CHECK", "1"), variable("PIP_NO_INPUT", "1")],
                    ..Command::default()
                }
            }
            Self::Npm => {
                step(&["npm", "install", "--prefix", SANDBOX_HOME, "--no-audit", "--no-fund"], packages, User::Sandbox)
            }
            Self::Apk => as_root(&["apk", "add", "--no-cache"]),
            Self::AptGet => {
                // Images contain no package lists, so apt-get finds no package before an update.
                let update = step(&["apt-get", "update", "-q"], &[], User::Root);
                let install = as_root(&["apt-get", "install", "-q", "-y", "--no-install-recommends"]);
                let quiet = variable("DEBIAN_FRONTEND", "noninteractive");
                let [update, install] = [update, install].map(|step| Command { env: vec![quiet.clone()], ..step });
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

fn step(words: &[&str], packages: &[PackageName], user: User) -> Command {
    let names = packages.iter().map(PackageName::as_str);
    let argv = words.iter().copied().chain(names).map(str::to_owned).collect();
    Command { argv, user, ..Command::default() }
}

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A command from the operator's settings: an absolute path and plain arguments, without shell quoting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// Returns the program and its arguments.
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

/// An invalid command line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandLineFault {
    #[error("must start with an absolute path, such as /usr/bin/python3")]
    NotAbsolute,
    /// A character outside the allowed set, which contains no shell syntax.
    #[error(
        "must be a path and plain arguments, separated by spaces and without shell syntax; \"{character}\" is not \
         allowed"
    )]
    NotPlain {
        /// The first such character, escaped.
        character: String,
    },
}

/// A guest lacks a program for a runtime.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RuntimeFault {
    #[error("failed to run {runtime} code: {wanted} not found in the image")]
    NoInterpreter {
        runtime: Runtime,
        /// The suitable programs, for example "bash or sh".
        wanted: String,
    },
    #[error("failed to install packages for {runtime}: {wanted} not found in the image")]
    NoInstaller {
        runtime: Runtime,
        /// The suitable package managers, for example "apk or apt-get".
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
    fn operator_command_comes_before_guest_programs() {
        let command: CommandLine = "/opt/py/bin/python -u".parse().unwrap();
        let chosen = Runtime::Python.interpreter(Some(&command), &guest(&["python3"]));
        assert_eq!(chosen, Ok(words("/opt/py/bin/python -u")));
        assert_eq!(Runtime::Python.interpreter(None, &guest(&["python3"])), Ok(words("python3")));
    }

    #[test]
    fn shell_script_prefers_bash() {
        assert_eq!(Runtime::Shell.interpreter(None, &guest(&["sh", "bash"])), Ok(words("bash")));
        assert_eq!(Runtime::Shell.interpreter(None, &guest(&["sh"])), Ok(words("sh")));
    }

    #[test]
    fn loader_depends_on_the_name_of_the_interpreter() {
        for (command, loader) in [
            ("python3", Some(Loader::Python)),
            ("/opt/py/bin/python3.12 -u", Some(Loader::Python)),
            ("/usr/bin/node", Some(Loader::Node)),
            ("bash", None),
            ("/usr/bin/env python3", None),
            ("/opt/python/bin/pypy", None),
        ] {
            assert_eq!(Runtime::loader(&words(command)), loader, "{command}");
        }
    }

    #[test]
    fn missing_programs_are_named() {
        let fault = Runtime::Node.interpreter(None, &guest(&["python3"])).unwrap_err();
        assert_eq!(fault.to_string(), "failed to run node code: node not found in the image");
        let fault = Runtime::Shell.installer(None, &guest(&["pip"])).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "failed to install packages for shell: apk or apt-get or dnf or yum or zypper not found in the image"
        );
    }

    #[test]
    fn package_managers_have_the_expected_commands() {
        let packages = parse_packages("a b==1").unwrap();
        for (installer, argv) in [
            (Installer::Npm, "npm install --prefix /home/sandbox --no-audit --no-fund a b==1"),
            (Installer::Apk, "apk add --no-cache a b==1"),
            (Installer::Dnf, "dnf install -y a b==1"),
            (Installer::Yum, "yum install -y a b==1"),
            (Installer::Zypper, "zypper --non-interactive install a b==1"),
        ] {
            let (step, None) = installer.steps(&packages) else { panic!("{installer:?} must take one step") };
            assert_eq!(step.argv, words(argv));
            assert_eq!(step.user == User::Sandbox, installer == Installer::Npm);
        }
        let (update, Some(install)) = Installer::AptGet.steps(&packages) else { panic!("apt-get must take two steps") };
        assert_eq!(update.argv, words("apt-get update -q"));
        assert_eq!(install.argv, words("apt-get install -q -y --no-install-recommends a b==1"));
    }

    #[test]
    fn pip_script_gets_packages_as_python_strings() {
        let (step, None) = Installer::Pip.steps(&parse_packages("a[x]>=1,<2 b").unwrap()) else { panic!("two steps") };
        let script = step.script.unwrap();
        assert_eq!(script.extension, "py");
        assert!(script.code.starts_with(b"PACKAGES = [\"a[x]>=1,<2\", \"b\"]\n"));
        assert_eq!(step.user, User::Sandbox);
    }

    #[test]
    fn rejects_shell_syntax_in_operator_commands() {
        assert_eq!("python3".parse::<CommandLine>(), Err(CommandLineFault::NotAbsolute));
        assert_eq!("".parse::<CommandLine>(), Err(CommandLineFault::NotAbsolute));
        for text in ["/bin/sh -c 'x'", "/a;b", "/a $HOME", "/a\nb", "/a|b"] {
            assert!(matches!(text.parse::<CommandLine>(), Err(CommandLineFault::NotPlain { .. })), "{text}");
        }
    }
}
