// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle run`: one program in one environment that lives as long as it does. It needs no server: the machine is this
//! process's own, made by the same services as a server's.

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

use super::{TIMED_OUT, open_machines, signals::End, terminal::Spinner};
use crate::{
    config::{self, Folders, Settings, duration, process_variable},
    domain::{
        command::{Command, EndCause, Executed, OutputStream},
        environment::NewEnvironment,
        file::Writing,
        guest_path::GuestPath,
        image::ImageRef,
        principal::Principal,
        runtime::Runtime,
    },
    server,
    service::{
        environments::Environments,
        execution::{Execution, Watcher},
        fault::Fault,
        filesystem::{FILE_BYTES_MAX, Filesystem},
    },
};

/// Nothing of a run that ended needs time to drain; its machine is destroyed within this.
const RELEASE: Duration = Duration::from_secs(10);
/// What a shell says of a command whose reader went away: 128 and SIGPIPE.
const NOBODY_READS: u8 = 141;
/// The environment has no other call, so its idle time never counts.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// What to run.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  waggle run python script.py
  waggle run python script.py -i --image docker.io/library/python:3.13-slim -- --verbose <input.csv
  echo 'console.log(1 + 1)' | waggle run node
  waggle run shell build.sh --timeout 10m && echo built

The machine lives as long as the program, and needs no server. Of this machine's files only FILE is in there; -i hands \
standard input on. The exit code is the program's; 124 means that its time \
was over, 1 that there was no machine for it.")]
pub struct RunArguments {
    /// What runs the program
    #[arg(value_parser = runtime_parser())]
    pub runtime: Runtime,
    /// The program; - or nothing reads it from standard input
    pub file: Option<PathBuf>,
    /// What the program is given
    #[arg(last = true)]
    pub arguments: Vec<String>,
    /// Image to run it in [default: the runtime's]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageRef>,
    /// The program is killed after this
    #[arg(long, default_value = "1h", value_parser = duration::parse, value_name = "DURATION")]
    pub timeout: Duration,
    /// Hand standard input on to the program; it is read to its end first
    #[arg(long, short)]
    pub interactive: bool,
    /// As the server would have them.
    #[command(flatten)]
    pub settings: Settings,
}

/// Names them all to whoever asks for help, or has a shell complete the command.
fn runtime_parser() -> impl TypedValueParser<Value = Runtime> {
    let unknown = || "there are python, node and shell".to_owned();
    let find = move |name: String| Runtime::ALL.into_iter().find(|runtime| runtime.name() == name).ok_or_else(unknown);
    PossibleValuesParser::new(Runtime::ALL.map(Runtime::name)).try_map(find)
}

/// Makes an environment, runs the program in it, and destroys it.
///
/// # Errors
/// What kept the program from running.
pub(super) async fn run(arguments: RunArguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut end = End::new()?;
    let reading = arguments.clone();
    // Standard input may be a terminal at which nobody types.
    let (name, code, stdin) = tokio::select! {
        read = spawn_blocking(move || read(&reading)) => read??,
        code = end.exit_code() => return Ok(code.into()),
    };
    let settings = &arguments.settings;
    let folders = Folders::of(settings, &process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let spinner = Spinner::start();
    let vms = tokio::select! {
        opened = open_machines::open(settings, &folders) => Arc::new(opened?.0),
        code = end.exit_code() => return Ok(code.into()),
    };
    let environments = Arc::new(Environments::new(
        Arc::<_>::clone(&vms) as _,
        server::machine_size(settings),
        settings.egress.clone(),
        1,
    ));
    let new = NewEnvironment {
        owner: Principal::anonymous(),
        name: None,
        runtime: arguments.runtime,
        image: arguments.image.unwrap_or_else(|| images.of(arguments.runtime).clone()),
        idle_timeout: IDLE,
        network: None,
    };
    let path = GuestPath::parse(&name)?;
    let command = Command { argv: arguments.arguments, stdin, timeout: arguments.timeout, ..Command::default() };
    let execution = Execution::new(Arc::clone(&environments), server::execution_rules(settings));
    // A task of its own: its output may wait for a reader, and a signal must be heard meanwhile.
    let mut life = tokio::spawn(live(Arc::clone(&environments), execution, new, (path, code), command, spinner));
    let outcome = tokio::select! {
        lived = &mut life => Some(lived),
        code = end.exit_code() => {
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
    let (made, _) = environments.create(new, |stage| spinner.say(stage.describe())).await?;
    let files = Filesystem::new(environments);
    files.write(&owner, made.id, &path, &code, Writing::default()).await?;
    // What the program writes must not run into the spinner.
    spinner.clear();
    let unread = CancellationToken::new();
    let hear = |stream, bytes: &[u8]| {
        if block_in_place(|| write(stream, bytes)).is_err() {
            unread.cancel();
        }
    };
    let watcher = Watcher { cancelled: &unread, on_output: &hear };
    let executed = execution.run_program(&owner, made.id, &path, command, watcher).await?;
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

/// The program's name in the guest, its text, and what it reads from its standard input.
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

/// The program or its input cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadFault {
    #[error("failed to read {}", what.display())]
    Read { what: PathBuf, source: io::Error },
    #[error("{} is above {} MiB; put data into the image, or fetch it from the program", what.display(), FILE_BYTES_MAX >> 20)]
    TooLarge { what: PathBuf },
    #[error("standard input is either the program or its input; name the program's file to use --interactive")]
    Twice,
}

/// The exit code that tells how the program ended, if anybody saw it.
fn status(executed: &Option<Executed>) -> ExitCode {
    let Some(executed) = executed else { return NOBODY_READS.into() };
    let own = u8::try_from(executed.exit_code).unwrap_or(u8::MAX);
    let say = |what: &str| drop(writeln!(io::stderr(), "waggle: {what}"));
    match executed.cause {
        EndCause::Exited => own.into(),
        EndCause::TimedOut => {
            say("the program's time was over; --timeout gives it more");
            TIMED_OUT.into()
        }
        EndCause::OutOfMemory => {
            say("the program needed more memory than the machine has; WAGGLE_DEFAULT_MEMORY_MB gives it more");
            own.into()
        }
        EndCause::Cancelled => NOBODY_READS.into(),
    }
}
