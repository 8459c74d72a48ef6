// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Runtimes, and the choice of the programs that run their code and install their packages.
//!
//! The operator's command has priority over the guest's programs. If neither exists, the error names the missing
//! programs.

mod installer;

use std::{fmt, str::FromStr};

pub use self::installer::{Installer, KilledInstallation, Step};
use super::{
    capabilities::Capabilities,
    command::{Loader, User},
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
    /// `None` if there is none for this command, such as a shell, or an operator's command with a script of its own.
    #[must_use]
    pub fn loader(interpreter: &[String]) -> Option<Loader> {
        let (program, arguments) = interpreter.split_first()?;
        let program = program.rsplit('/').next()?;
        let is_option = |word: &String| word.starts_with("--") && word.len() > "--".len();
        let is_flags = |word: &String| word.strip_prefix('-').is_some_and(|flags| flags.chars().all(is_python_flag));
        match program {
            "node" | "nodejs" if arguments.iter().all(is_option) => Some(Loader::Node),
            _ if program.starts_with("python") && arguments.iter().all(is_flags) => Some(Loader::Python),
            _ => None,
        }
    }
}

/// Returns whether the letter is an option of Python that takes no value and runs no other code.
fn is_python_flag(letter: char) -> bool {
    matches!(letter, 'b' | 'B' | 'd' | 'E' | 'I' | 'O' | 'P' | 'q' | 's' | 'S' | 'u' | 'v' | 'x')
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of packages to install.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PackageKind {
    /// Packages of a runtime's package manager.
    Runtime(Runtime),
    /// Packages of the image's own package manager, in an environment of any runtime.
    System,
}

impl PackageKind {
    /// Returns the runtime whose operator's command installs such packages.
    #[must_use]
    pub fn runtime(self) -> Runtime {
        match self {
            Self::Runtime(runtime) => runtime,
            // The packages of the runtime `shell` are those of the system.
            Self::System => Runtime::Shell,
        }
    }

    /// Returns the package managers for these packages, best first.
    fn installers(self) -> &'static [Installer] {
        match self.runtime() {
            Runtime::Python => &[Installer::Pip],
            Runtime::Node => &[Installer::Npm],
            Runtime::Shell => &[Installer::Apk, Installer::AptGet, Installer::Dnf, Installer::Yum, Installer::Zypper],
        }
    }

    /// Chooses the package manager.
    ///
    /// # Errors
    /// [`RuntimeFault::NoInstaller`] if neither the operator nor the guest has a package manager.
    pub fn installer(self, operator: Option<&CommandLine>, guest: &Capabilities) -> Result<Installer, RuntimeFault> {
        if let Some(command) = operator {
            let user = if self.runtime() == Runtime::Shell { User::Root } else { User::Sandbox };
            return Ok(Installer::Operator { command: command.clone(), user });
        }
        let found = self.installers().iter().find(|installer| installer.programs().iter().all(|name| guest.has(name)));
        found.cloned().ok_or_else(|| {
            let wanted: Vec<_> = self.installers().iter().flat_map(|installer| installer.programs()).copied().collect();
            RuntimeFault::NoInstaller { packages: self, wanted: wanted.join(" or ") }
        })
    }
}

impl fmt::Display for PackageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(runtime) => write!(f, "packages for {runtime}"),
            Self::System => f.write_str("system packages"),
        }
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

    pub fn of_mut(&mut self, runtime: Runtime) -> &mut T {
        match runtime {
            Runtime::Python => &mut self.python,
            Runtime::Node => &mut self.node,
            Runtime::Shell => &mut self.shell,
        }
    }
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
    #[error("failed to install {packages}: {wanted} not found in the image")]
    NoInstaller {
        packages: PackageKind,
        /// The suitable package managers, for example "apk or apt-get".
        wanted: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("/usr/bin/node --max-old-space-size=200 --no-warnings", Some(Loader::Node)),
            ("/usr/bin/node /opt/wrap.js", None),
            ("/usr/bin/node --require /opt/hook.js", None),
            ("/usr/bin/python3 -m tool", None),
            ("/usr/bin/python3 -X dev", None),
            ("/usr/bin/python3 /opt/wrap.py", None),
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
        let fault = PackageKind::Runtime(Runtime::Shell).installer(None, &guest(&["pip"])).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "failed to install packages for shell: apk or apt-get or dnf or yum or zypper not found in the image"
        );
    }

    #[test]
    fn system_packages_are_those_of_the_shell_runtime_in_each_runtime() {
        let image = guest(&["python3", "npm", "apt-get"]);
        assert_eq!(PackageKind::System.installer(None, &image), Ok(Installer::AptGet));
        assert_eq!(PackageKind::Runtime(Runtime::Python).installer(None, &image), Ok(Installer::Pip));
        let command: CommandLine = "/opt/install".parse().unwrap();
        let chosen = PackageKind::System.installer(Some(&command), &image);
        assert_eq!(chosen, Ok(Installer::Operator { command, user: User::Root }));
        let fault = PackageKind::System.installer(None, &guest(&["python3"])).unwrap_err();
        assert!(fault.to_string().starts_with("failed to install system packages: apk or apt-get"), "{fault}");
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
