// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What a person types: the command line, and what each command does.

mod advice;
mod announce;
mod doctor;
mod images;
mod manual;
mod misplaced;
mod open_machines;
mod progress;
mod quantities;
mod remote;
mod run;
mod serve;
mod signals;
mod terminal;
mod token_reader;
mod version;

use std::{
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

pub use self::{
    advice::next_step,
    doctor::DoctorArguments,
    remote::{ExecArguments, LogsArguments, PsArguments, ServerArguments},
    run::RunArguments,
};
use crate::{
    config::{self, ImageArguments, Lookup, Settings, process_variable, with_variables},
    error_code, mcp, telemetry,
};

/// What still blocks in the end is left to end with the process after this.
const BLOCKING_END: Duration = Duration::from_secs(1);

/// What a shell says of a command that was killed for its time, as timeout(1) does.
const TIMED_OUT: u8 = 124;

/// What `waggle run` logs if `RUST_LOG` says nothing: its stderr is the program's.
const RUN_LOG: &str = "error";

const SERVE_HELP: &str = "\
Examples:
  waggle serve
  WAGGLE_EGRESS=none waggle serve --max-environments 4
  waggle serve --listen-addr 0.0.0.0:8080 --auth-tokens-file tokens --allowed-hosts waggle.example
  waggle serve --stdio

Every flag is also a variable, as its [env: ...] says; a flag comes before it. `waggle doctor` says what is missing.";

const IMAGE_HELP: &str = "\
Examples:
  waggle image pull python:3.13-slim
  waggle image ls
  waggle image inspect python:3.13-slim --json
  waggle image rm python:3.13-slim
  waggle image prune --image-cache-max-mb 4096

Credentials come from where `docker login` and `podman login` put them.";

const COMPLETIONS_HELP: &str = "\
Examples:
  waggle completions bash > ~/.local/share/bash-completion/completions/waggle
  waggle completions zsh > ~/.zfunc/_waggle, with ~/.zfunc in fpath
  waggle completions fish > ~/.config/fish/completions/waggle.fish

The Debian package brings them.";

/// The commands that take settings.
const WITH_SETTINGS: [&str; 4] = ["serve", "doctor", "image", "run"];

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "waggle", about = "Isolated Linux machines for AI agents, over MCP", version, max_term_width = 120)]
pub struct CommandArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the tools over HTTP, or over standard input and output
    #[command(after_help = SERVE_HELP)]
    Serve(Box<Settings>),
    /// Run a program in a machine of its own, without a server, and pass its exit code on
    Run(Box<RunArguments>),
    /// List the environments of a running server
    Ps(PsArguments),
    /// Run a command in an environment of a running server
    Exec(ExecArguments),
    /// Say what happened to an environment of a running server, and what its machine printed
    Logs(LogsArguments),
    /// Say what this host has for machines and what it lacks, and boot one
    Doctor(Box<DoctorArguments>),
    /// Pull, list and remove images
    #[command(after_help = IMAGE_HELP)]
    Image(ImageArguments),
    /// Print version, commit and build date, and what travels in this program
    Version,
    /// Print the licences of this program, and of what travels in it
    Licences,
    /// Print what completes this command line in a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual's pages, for packages
    #[command(hide = true)]
    Man {
        /// Folder to write them to
        folder: PathBuf,
    },
    /// Print what is generated from the program
    #[command(hide = true)]
    Gen {
        /// Which of it
        what: Generated,
    },
}

/// What can be generated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Generated {
    /// The page of settings, in Markdown
    Settings,
    /// The tools with their schemas, in JSON
    Tools,
    /// The page of error codes, in Markdown
    Errors,
}

impl Command {
    /// The settings of a command that has some.
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

/// Reads the command line and the variables.
///
/// # Errors
/// clap's, which also carries the answers to `--help` and `--version`.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: Lookup<'_>,
) -> Result<CommandArguments, clap::Error> {
    let command = command_line(variable);
    let matches = command.clone().try_get_matches_from(arguments).map_err(misplaced::without_credentials)?;
    let arguments = CommandArguments::from_arg_matches(&matches)?;
    if let Some(settings) = arguments.command.settings() {
        settings.check().map_err(|fault| command.clone().error(clap::error::ErrorKind::ValueValidation, fault))?;
    }
    Ok(arguments)
}

/// The whole command line; settings have their variables' values as defaults.
fn command_line(variable: Lookup<'_>) -> clap::Command {
    let whole = CommandArguments::command();
    let command = WITH_SETTINGS
        .iter()
        .fold(whole, |command, name| command.mut_subcommand(name, |command| with_variables(command, variable)));
    // Their own arguments are few; the settings are for those who ask for all.
    ["doctor", "run"].iter().fold(command, |command, name| command.mut_subcommand(name, hide_settings))
}

fn hide_settings(command: clap::Command) -> clap::Command {
    let settings = Settings::augment_args(clap::Command::new(""));
    let names: Vec<_> = settings.get_arguments().map(|setting| setting.get_id().clone()).collect();
    names.into_iter().fold(command, |command, name| command.mut_arg(name, |argument| argument.hide_short_help(true)))
}

/// Does what the command line says.
///
/// # Errors
/// What went wrong, for a person to read.
pub fn run(arguments: CommandArguments) -> Result<ExitCode, Box<dyn Error>> {
    match arguments.command {
        Command::Serve(settings) => {
            telemetry::start(log_filter().as_deref())?;
            wait_for(serve::serve(&settings))?;
        }
        Command::Run(arguments) => {
            telemetry::start(Some(log_filter().as_deref().unwrap_or(RUN_LOG)))?;
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
        Command::Gen { what: Generated::Settings } => io::stdout().write_all(config::settings_page().as_bytes())?,
        Command::Gen { what: Generated::Errors } => io::stdout().write_all(error_code::page().as_bytes())?,
        Command::Gen { what: Generated::Tools } => {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&mcp::tools())?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn log_filter() -> Option<String> {
    process_variable("RUST_LOG").and_then(|filter| filter.into_string().ok()).filter(|filter| !filter.is_empty())
}

/// Runs one of the commands that wait for more than one thing at a time.
fn wait_for<T>(command: impl Future<Output = Result<T, Box<dyn Error>>>) -> Result<T, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A merge of an image or a full disk can keep a blocking thread for minutes.
    runtime.shutdown_timeout(BLOCKING_END);
    done
}
