// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle run`: runs one program in a new environment, and destroys the environment at the program's end. The command
//! needs no server: this process owns the machine, and uses the same services as a server.

use std::{
    error::Error,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use tokio::task::{block_in_place, spawn_blocking};
use tokio_util::sync::CancellationToken;
use waggle_images::reference::{ImageRef, PullRights};

use super::{
    exit_codes::{BROKEN_PIPE, TIMED_OUT},
    open_machines::{self, Opened},
    signals::ShutdownSignals,
    terminal::Spinner,
};
use crate::{
    config::{self, Settings, duration, process_variable},
    domain::{
        command::{Command, EndCause, Executed, OutputStream},
        environment::NewEnvironment,
        file::Writing,
        guest_path::GuestPath,
        principal::Principal,
        runtime::Runtime,
        shared_limit::SharedLimit,
        variables::Variables,
    },
    server,
    service::{
        callers::Callers,
        environments::Environments,
        execution::{Execution, Watcher},
        fault::Fault,
        filesystem::{FILE_BYTES_MAX, Filesystem},
    },
};

/// Timeout for destroying the machine.
const RELEASE: Duration = Duration::from_secs(10);
/// Idle timeout of the environment. This timeout never expires, since the program's call runs all the time.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// The arguments of `waggle run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  waggle run python script.py
  waggle run python script.py -i --image docker.io/library/python:3.13-slim -- --verbose <input.csv
  echo 'console.log(1 + 1)' | waggle run node
  waggle run shell build.sh --timeout 10m && echo built

The machine is destroyed when the program ends; no server is needed. FILE is the only file of this host \
that the machine gets; -i passes standard input to the program. The exit code is the program's; 124 means that the \
program timed out, 1 that it did not run.")]
pub struct RunArguments {
    /// Runtime of the program
    #[arg(value_parser = runtime_parser())]
    pub runtime: Runtime,
    /// File with the program [default: standard input, also as -]
    pub file: Option<PathBuf>,
    /// Arguments for the program
    #[arg(last = true)]
    pub arguments: Vec<String>,
    /// Image of the machine [default: the image of the runtime]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageRef>,
    /// Time after which the program is killed
    #[arg(long, default_value = "1h", value_parser = duration::parse, value_name = "DURATION")]
    pub timeout: Duration,
    /// Pass standard input to the program, which starts when all input has been read
    #[arg(long, short)]
    pub interactive: bool,
    /// The settings, as for `waggle serve`.
    #[command(flatten)]
    pub settings: Settings,
}

/// Returns a parser with possible values, which appear in the help and in completions.
fn runtime_parser() -> impl TypedValueParser<Value = Runtime> {
    let unknown = || "must be python, node or shell".to_owned();
    let find = move |name: String| Runtime::ALL.into_iter().find(|runtime| runtime.name() == name).ok_or_else(unknown);
    PossibleValuesParser::new(Runtime::ALL.map(Runtime::name)).try_map(find)
}

/// Creates an environment, runs the program in it, and destroys it.
///
/// # Errors
/// The reason why the program did not run.
pub(super) async fn run(mut arguments: RunArguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut signals = ShutdownSignals::new()?;
    let reading = arguments.clone();
    // Standard input may be a terminal, so reading may block without end.
    let (name, code, stdin) = tokio::select! {
        read = spawn_blocking(move || read(&reading)) => read??,
        code = signals.exit_code() => return Ok(code.into()),
    };
    let settings = &mut arguments.settings;
    // The only machine would not use a template.
    settings.templates.count = 0;
    let settings = &*settings;
    let folders = settings.folders(&process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let spinner = Spinner::start();
    let Opened { machines, data_folder: _data_folder, .. } = tokio::select! {
        opened = open_machines::open(settings, &folders) => opened?,
        code = signals.exit_code() => return Ok(code.into()),
    };
    let vms = Arc::new(machines);
    let environments = Arc::new(Environments::new(
        Arc::<_>::clone(&vms) as _,
        settings.boot_timeout,
        settings.egress.clone(),
        SharedLimit { all: 1, per_caller: None },
        Callers::default(),
    ));
    let new = NewEnvironment {
        owner: Principal::anonymous(),
        name: None,
        runtime: arguments.runtime,
        image: arguments.image.unwrap_or_else(|| images.of(arguments.runtime).clone()),
        pull_rights: PullRights::Operator,
        size: settings.sizes().default,
        variables: Variables::default(),
        idle_timeout: IDLE,
        network: None,
    };
    let path = GuestPath::parse(&name)?;
    let command = Command { argv: arguments.arguments, stdin, timeout: arguments.timeout, ..Command::default() };
    let execution = Execution::new(Arc::clone(&environments), server::execution_rules(settings));
    // A separate task, since writing the output may block, and signals must still be handled.
    let mut life = tokio::spawn(live(Arc::clone(&environments), execution, new, (path, code), command, spinner));
    let outcome = tokio::select! {
        lived = &mut life => Some(lived),
        code = signals.exit_code() => {
            life.abort();
            environments.shut_down(Duration::ZERO, RELEASE).await;
            vms.close().await;
            return Ok(code.into());
        }
    };
    environments.shut_down(Duration::ZERO, RELEASE).await;
    vms.close().await;
    match outcome {
        Some(lived) => Ok(status(&lived??)),
        None => Ok(ExitCode::FAILURE),
    }
}

async fn live(
    environments: Arc<Environments>,
    execution: Execution,
    new: NewEnvironment,
    (path, code): (GuestPath, Vec<u8>),
    command: Command,
    spinner: Spinner,
) -> Result<Option<Executed>, Fault> {
    let owner = new.owner.clone();
    let created = environments.create(new, |stage| spinner.show(stage.describe())).await?;
    let files = Filesystem::new(environments);
    files.write(&owner, created.environment.id, &path, &code, Writing::default()).await?;
    // The program's output must not mix with the spinner.
    spinner.clear();
    let unread = CancellationToken::new();
    let on_output = |stream, bytes: &[u8]| {
        if block_in_place(|| write(stream, bytes)).is_err() {
            unread.cancel();
        }
    };
    let watcher = Watcher { cancelled: &unread, on_output: &on_output };
    let executed = execution.run_program(&owner, created.environment.id, &path, command, watcher).await?;
    Ok(if unread.is_cancelled() { None } else { Some(executed) })
}

fn write(stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        OutputStream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        OutputStream::Stderr => io::stderr().lock().write_all(bytes),
    }
}

/// Reads the program and its input; returns the program's name in the guest, its code, and its standard input.
fn read(arguments: &RunArguments) -> Result<(String, Vec<u8>, Vec<u8>), ReadFault> {
    let bytes_max = FILE_BYTES_MAX as u64;
    let take = |what: &Path, from: &mut dyn Read| {
        let mut bytes = Vec::new();
        let read = from.take(bytes_max + 1).read_to_end(&mut bytes);
        read.map_err(|source| ReadFault::Read { what: what.to_owned(), source })?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err(ReadFault::TooLarge { what: what.to_owned() });
        }
        Ok(bytes)
    };
    let stdin = Path::new("standard input");
    match arguments.file.as_deref().filter(|file| *file != Path::new("-")) {
        Some(file) => {
            let opened = File::open(file).map_err(|source| ReadFault::Read { what: file.to_owned(), source });
            let code = take(file, &mut opened?)?;
            let input = if arguments.interactive { take(stdin, &mut io::stdin())? } else { Vec::new() };
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
            Ok((name.unwrap_or_else(|| "program".to_owned()), code, input))
        }
        None if arguments.interactive => Err(ReadFault::Twice),
        None => Ok((format!("program.{}", arguments.runtime.extension()), take(stdin, &mut io::stdin())?, Vec::new())),
    }
}

/// The program or its input could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadFault {
    #[error("failed to read {}", what.display())]
    Read { what: PathBuf, source: io::Error },
    #[error(
        "{} must have at most {} MiB; put larger data into the image, or download it in the program",
        what.display(),
        FILE_BYTES_MAX >> 20
    )]
    TooLarge { what: PathBuf },
    #[error("standard input cannot be both the program and its input; with --interactive, name the program's file")]
    Twice,
}

/// Returns the exit code for the end of the program, or for closed output (`None`).
fn status(executed: &Option<Executed>) -> ExitCode {
    let Some(executed) = executed else { return BROKEN_PIPE.into() };
    let own = u8::try_from(executed.exit_code).unwrap_or(u8::MAX);
    let report = |reason: &str| drop(writeln!(io::stderr(), "waggle: {reason}"));
    match executed.cause {
        EndCause::Exited => own.into(),
        EndCause::TimedOut => {
            report("the program timed out; set a longer --timeout");
            TIMED_OUT.into()
        }
        EndCause::OutOfMemory => {
            report("the program ran out of memory; set a larger WAGGLE_DEFAULT_MEMORY_MB");
            own.into()
        }
        EndCause::Cancelled => BROKEN_PIPE.into(),
    }
}
