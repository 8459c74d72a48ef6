// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The command line, and a module for each command.

mod advice;
mod announce;
mod disk_check;
mod doctor;
mod exit_codes;
mod host_memory;
mod images;
mod lasting;
mod make_templates;
mod manual;
mod open_machines;
mod progress;
mod quantities;
mod remote;
mod run;
mod serve;
mod signals;
mod terminal;
mod tls_reader;
mod token_reader;
mod version;

use std::{
    borrow::Cow,
    error::Error,
    ffi::OsString,
    future::Future,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use waggle_shared::causes::mask_credentials;

pub use self::{
    advice::next_step,
    doctor::DoctorArguments,
    remote::{ExecArguments, LogsArguments, PsArguments, ServerArguments},
    run::RunArguments,
};
use crate::{
    config::{self, ImageArguments, Lookup, Settings, with_variables},
    error_code, mcp, telemetry,
};

/// Timeout for blocking tasks when the runtime shuts down. Tasks that exceed this timeout end with the process.
const BLOCKING_END: Duration = Duration::from_secs(1);

/// The log filter of `waggle run`. Standard error is for the program's output, so the command logs only errors.
const RUN_LOG: &str = "error";

const SERVE_HELP: &str = "\
Examples:
  waggle serve
  WAGGLE_EGRESS=none waggle serve --max-environments 4
  waggle serve --listen-addr 0.0.0.0:8080 --auth-tokens-file tokens --allowed-hosts waggle.example
  waggle serve --stdio

Each flag has a variable, shown as [env: ...]; the flag takes precedence. `waggle doctor` lists what is missing.";

const IMAGE_HELP: &str = "\
Examples:
  waggle image pull python:3.13-slim
  waggle image ls
  waggle image inspect python:3.13-slim --json
  waggle image verify
  waggle image rm python:3.13-slim
  waggle image prune --image-cache-max-mb 4096

Credentials are those of `docker login` and `podman login`.";

const COMPLETIONS_HELP: &str = "\
Examples:
  waggle completions bash > ~/.local/share/bash-completion/completions/waggle
  waggle completions zsh > ~/.zfunc/_waggle, with ~/.zfunc in fpath
  waggle completions fish > ~/.config/fish/completions/waggle.fish

The Debian package installs these scripts.";

/// Commands with settings.
const WITH_SETTINGS: [&str; 4] = ["serve", "doctor", "image", "run"];

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "waggle", about = "Isolated Linux machines for AI agents, over MCP", version, max_term_width = 120)]
pub struct CommandArguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve MCP over HTTP, or over standard input and output
    #[command(after_help = SERVE_HELP)]
    Serve(Box<Settings>),
    /// Run a program in a new machine, without a server, and exit with the program's exit code
    Run(Box<RunArguments>),
    /// List the environments of a running server
    Ps(PsArguments),
    /// Run a command in an environment of a running server
    Exec(ExecArguments),
    /// Show the events and the console of an environment of a running server
    Logs(LogsArguments),
    /// Check whether machines can run on this host, and boot one
    Doctor(Box<DoctorArguments>),
    /// Pull, list, verify and remove images
    #[command(after_help = IMAGE_HELP)]
    Image(ImageArguments),
    /// Print version, commit and build date, and the embedded agent and firmware
    Version,
    /// Print the licences of this program and of the embedded firmware
    Licences,
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Man {
        /// Folder for the pages
        folder: PathBuf,
    },
    /// Print a page that is generated from the program
    #[command(hide = true)]
    Gen {
        /// The page
        page: Generated,
    },
}

/// The generated pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Generated {
    /// The settings, in Markdown
    Settings,
    /// The tools with their schemas, in JSON
    Tools,
    /// The error codes, in Markdown
    Errors,
}

impl Command {
    /// Returns the settings of `waggle serve` if the command has them.
    fn settings(&self) -> Option<&Settings> {
        match self {
            Self::Serve(settings) => Some(settings),
            Self::Doctor(arguments) => Some(&arguments.settings),
            Self::Run(arguments) => Some(&arguments.settings),
            Self::Image(_) | Self::Ps(_) | Self::Exec(_) | Self::Logs(_) | Self::Version | Self::Licences => None,
            Self::Completions { .. } | Self::Man { .. } | Self::Gen { .. } => None,
        }
    }
}

/// Parses the command line and the variables.
///
/// # Errors
/// clap's error. The output of `--help` and `--version` is also returned as an error.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: Lookup<'_>,
) -> Result<CommandArguments, clap::Error> {
    let command = command_line(variable);
    let matches = command.clone().try_get_matches_from(arguments).map_err(without_credentials)?;
    let arguments = CommandArguments::from_arg_matches(&matches)?;
    if let Some(settings) = arguments.command.settings() {
        settings.check().map_err(|fault| command.clone().error(clap::error::ErrorKind::ValueValidation, fault))?;
    }
    Ok(arguments)
}

/// Masks the credentials of URLs in clap's error, which repeats invalid and misplaced values.
fn without_credentials(fault: clap::Error) -> clap::Error {
    let text = fault.render().to_string();
    match mask_credentials(&text) {
        Cow::Owned(masked) if fault.use_stderr() => {
            clap::Error::raw(fault.kind(), masked.trim_start_matches("error: "))
        }
        // The help and the version repeat no value.
        Cow::Borrowed(_) | Cow::Owned(_) => fault,
    }
}

/// Builds the command line, with the variables' values as the defaults of the settings.
fn command_line(variable: Lookup<'_>) -> clap::Command {
    let whole = CommandArguments::command();
    let command = WITH_SETTINGS
        .iter()
        .fold(whole, |command, name| command.mut_subcommand(name, |command| with_variables(command, variable)));
    // For these commands -h shows only their own few arguments; --help also shows the settings.
    ["doctor", "run"].iter().fold(command, |command, name| command.mut_subcommand(name, hide_settings))
}

fn hide_settings(command: clap::Command) -> clap::Command {
    let settings = Settings::augment_args(clap::Command::new(""));
    let names: Vec<_> = settings.get_arguments().map(|setting| setting.get_id().clone()).collect();
    names.into_iter().fold(command, |command, name| command.mut_arg(name, |argument| argument.hide_short_help(true)))
}

/// Runs the command.
///
/// # Errors
/// The command's error, for a person to read.
pub fn run(arguments: CommandArguments) -> Result<ExitCode, Box<dyn Error>> {
    match arguments.command {
        Command::Serve(settings) => {
            telemetry::start(telemetry::SERVER_FILTER)?;
            wait_for(serve::serve(&settings))?;
        }
        Command::Run(arguments) => {
            telemetry::start(RUN_LOG)?;
            return wait_for(run::run(*arguments));
        }
        Command::Ps(arguments) => return wait_for(remote::ps(&arguments)),
        Command::Exec(arguments) => return wait_for(remote::exec(&arguments)),
        Command::Logs(arguments) => return wait_for(remote::logs(&arguments)),
        Command::Doctor(arguments) => return wait_for(doctor::doctor(&arguments)),
        Command::Image(arguments) => images::run(&arguments)?,
        Command::Completions { shell } => manual::complete(command_line(&|_| None), shell, &mut io::stdout())?,
        Command::Man { folder } => manual::write_pages(command_line(&|_| None), &folder)?,
        Command::Version => version::print(&mut io::stdout())?,
        Command::Licences => version::print_licences(&mut io::stdout())?,
        Command::Gen { page: Generated::Settings } => io::stdout().write_all(config::settings_page().as_bytes())?,
        Command::Gen { page: Generated::Errors } => io::stdout().write_all(error_code::page().as_bytes())?,
        Command::Gen { page: Generated::Tools } => {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&mcp::tools())?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs an asynchronous command.
fn wait_for<T>(command: impl Future<Output = Result<T, Box<dyn Error>>>) -> Result<T, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A blocking thread can be busy for minutes, for example with the merge of an image.
    runtime.shutdown_timeout(BLOCKING_END);
    result
}
