// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The commands for a running server: `ps`, `exec` and `logs`, each with one HTTP request.

mod server;

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use waggle_shared::printable;

pub use self::server::ServerArguments;
use self::server::{RemoteFault, call, get};
use super::exit_codes::TIMED_OUT;
use crate::{
    domain::{environment_id::EnvironmentId, output::OUTPUT_BYTES_MAX},
    error_code::ErrorCode,
};

/// Time for the server's part of a call, in addition to the command's timeout.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
/// Timeout of a request that runs no command, and the default timeout of a command.
const QUICK_SECONDS: u64 = 30;

/// The arguments of `waggle ps`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle ps
  WAGGLE_TOKEN=$TOKEN waggle ps --url https://waggle.example/mcp
  waggle ps --json | jq -r '.environments[].environment_id'")]
pub struct PsArguments {
    /// The server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// The arguments of `waggle exec`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle exec 123e4567-e89b-42d3-a456-426614174000 -- ls -l
  waggle exec $ID --timeout 120 -- sh -c 'make && ./test'

The image's shell runs the command, without input. The output is shown when the command has ended. The exit code is \
the command's; 124 means that the command timed out, 1 that it did not run.")]
pub struct ExecArguments {
    /// The environment, as `waggle ps` lists it
    pub environment_id: String,
    /// The command, with its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
    /// Timeout in seconds; at most the server's --max-exec-timeout
    #[arg(long, default_value_t = QUICK_SECONDS, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// The server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// The arguments of `waggle logs`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle logs 123e4567-e89b-42d3-a456-426614174000
  waggle logs $ID --json | jq -r .status

Shows the events of the environment and the end of its machine's console, also after the machine has failed. The log \
is kept as long as `waggle ps` lists the environment, and for a while if its machine did not start. It does not \
contain the output of commands, which only their callers get.")]
pub struct LogsArguments {
    /// The environment, as `waggle ps` lists it
    pub environment_id: String,
    /// The server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// Lists environments.
///
/// # Errors
/// The server is unreachable, or refuses the request.
pub(super) async fn ps(arguments: &PsArguments) -> Result<ExitCode, Box<dyn Error>> {
    let listed = call(&arguments.server, "list_environments", json!({}), Duration::from_secs(QUICK_SECONDS)).await?;
    let mut out = io::stdout().lock();
    if arguments.server.json {
        writeln!(out, "{listed:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |out: &mut dyn Write, cells: [&str; 5]| {
        let [id, runtime, status, created, name] = cells.map(plain);
        writeln!(out, "{id:<36}  {runtime:<7}  {status:<10}  {created:<20}  {name}")
    };
    row(&mut out, ["ENVIRONMENT ID", "RUNTIME", "STATUS", "CREATED", "NAME"])?;
    for one in listed.get("environments").and_then(Value::as_array).into_iter().flatten() {
        let cells = ["environment_id", "runtime", "status", "created_at", "name"].map(|key| text(one, key));
        row(&mut out, cells)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command, prints its output, and returns its exit code.
///
/// # Errors
/// The server is unreachable, or refuses the request.
pub(super) async fn exec(arguments: &ExecArguments) -> Result<ExitCode, Box<dyn Error>> {
    let code = format!("exec {}", arguments.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    let call_arguments = json!({
        "environment_id": arguments.environment_id,
        "language": "shell",
        "code": code,
        "timeout_seconds": arguments.timeout,
        "output_bytes": OUTPUT_BYTES_MAX,
    });
    let timeout = Duration::from_secs(arguments.timeout).saturating_add(ANSWER_MARGIN);
    let ran = match call(&arguments.server, "execute", call_arguments, timeout).await {
        Err(RemoteFault::Refused { code, message }) if code == ErrorCode::TimedOut.as_str() => {
            writeln!(io::stderr(), "waggle: {message}")?;
            return Ok(TIMED_OUT.into());
        }
        ran => ran?,
    };
    if arguments.server.json {
        writeln!(io::stdout(), "{ran:#}")?;
    } else {
        io::stdout().write_all(text(&ran, "stdout").as_bytes())?;
        io::stdout().flush()?;
        io::stderr().write_all(text(&ran, "stderr").as_bytes())?;
    }
    let exit_code = ran.get("exit_code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
    Ok(exit_code.unwrap_or(u8::MAX).into())
}

/// Prints the log of an environment.
///
/// # Errors
/// The server is unreachable, or refuses the request.
pub(super) async fn logs(arguments: &LogsArguments) -> Result<ExitCode, Box<dyn Error>> {
    let id: EnvironmentId = arguments.environment_id.parse()?;
    let log = get(&arguments.server, &format!("environments/{id}/log"), Duration::from_secs(QUICK_SECONDS)).await?;
    let mut out = io::stdout().lock();
    if arguments.server.json {
        writeln!(out, "{log:#}")?;
    } else {
        print_log(&mut out, &log)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_log(out: &mut dyn Write, log: &Value) -> io::Result<()> {
    let list = |key: &str| log.get(key).and_then(Value::as_array).into_iter().flatten();
    let about = ["environment_id", "runtime", "status", "name"].map(|key| plain(text(log, key)));
    writeln!(out, "{}\nimage {}\n", about.join("  "), plain(text(log, "image")))?;
    for event in list("events") {
        writeln!(out, "{:<20}  {}", plain(text(event, "at")), plain(text(event, "what")))?;
    }
    if let Some(count @ 1..) = log.get("egress_refused").and_then(Value::as_u64) {
        writeln!(
            out,
            "\nthe network policy refused {count} connections or names, the latest: {}",
            plain(text(log, "egress_refused_last"))
        )?;
    }
    let mut console = list("console").filter_map(Value::as_str).peekable();
    if console.peek().is_some() {
        writeln!(out, "\nconsole:")?;
    }
    console.try_for_each(|line| writeln!(out, "  {}", plain(line)))
}

/// Escapes control characters, since the server may be hostile.
fn plain(text: &str) -> String {
    printable::letters(text).collect()
}

/// Quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_word_stays_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME; rm *"), r"'it'\''s $HOME; rm *'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn printed_log_has_no_control_characters() {
        let log = json!({
            "environment_id": "1", "runtime": "shell", "status": "error", "name": "n\u{1b}[2J", "image": "oci:/x",
            "events": [{"at": "2026-01-02T03:04:05Z", "what": "the machine is gone: \rit panicked"}],
            "egress_refused": 2, "egress_refused_last": "192.0.2.1:80",
            "console": ["Kernel panic", "\u{202e}x"],
        });
        let mut out = Vec::new();
        print_log(&mut out, &log).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "1  shell  error  n\\u{1b}[2J\nimage oci:/x\n\n\
             2026-01-02T03:04:05Z  the machine is gone: \\u{d}it panicked\n\n\
             the network policy refused 2 connections or names, the latest: 192.0.2.1:80\n\n\
             console:\n  Kernel panic\n  \\u{202e}x\n"
        );
        let mut nothing = Vec::new();
        print_log(&mut nothing, &json!({})).unwrap();
    }
}
