// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The commands that talk to a running server: one request each, over HTTP.

mod server;

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

pub use self::server::ServerArguments;
use self::server::{RemoteFault, call, get};
use super::TIMED_OUT;
use crate::{domain::environment_id::EnvironmentId, error_code::ErrorCode, printable};

/// For the server's part of a call, above the command's own time.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
/// Of the answer to a call that runs nothing.
const QUICK_SECONDS: u64 = 30;

/// Which environments.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle ps
  WAGGLE_TOKEN=$TOKEN waggle ps --url https://waggle.example/mcp
  waggle ps --json | jq -r '.environments[].environment_id'")]
pub struct PsArguments {
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// What to run where.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle exec 123e4567-e89b-42d3-a456-426614174000 -- ls -l
  waggle exec $ID --timeout 120 -- sh -c 'make && ./test'

The image's shell runs it, without input; what it prints is shown when it has ended. The exit code is the command's; 124 \
means that its time was over, 1 that it did not run.")]
pub struct ExecArguments {
    /// The environment, as `waggle ps` lists it
    pub environment_id: String,
    /// The command, with its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
    /// Seconds that it may take; at most the server's longest time-out, 300 unless it is set
    #[arg(long, default_value_t = QUICK_SECONDS, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// Whose log.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle logs 123e4567-e89b-42d3-a456-426614174000
  waggle logs $ID --json | jq -r .status

It has what happened to the environment and the last that its machine printed on its console, also when the machine has \
failed. It is there as long as `waggle ps` lists the environment, and a while for those whose machine did not start. What \
commands print is theirs: their callers have it.")]
pub struct LogsArguments {
    /// The environment, as `waggle ps` lists it
    pub environment_id: String,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// Lists environments.
///
/// # Errors
/// If the server cannot be reached, or refuses.
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

/// Runs a command, and passes its output and exit code on.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub(super) async fn exec(arguments: &ExecArguments) -> Result<ExitCode, Box<dyn Error>> {
    let code = format!("exec {}", arguments.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    let call_arguments = json!({
        "environment_id": arguments.environment_id,
        "language": "shell",
        "code": code,
        "timeout_seconds": arguments.timeout,
    });
    let patience = Duration::from_secs(arguments.timeout).saturating_add(ANSWER_MARGIN);
    let ran = match call(&arguments.server, "execute", call_arguments, patience).await {
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

/// Prints what happened to an environment, and its console.
///
/// # Errors
/// If the server cannot be reached, or refuses.
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
            "\nthe network policy refused {count}; the last was {}",
            plain(text(log, "egress_refused_last"))
        )?;
    }
    let mut console = list("console").filter_map(Value::as_str).peekable();
    if console.peek().is_some() {
        writeln!(out, "\nconsole:")?;
    }
    console.try_for_each(|line| writeln!(out, "  {}", plain(line)))
}

/// The text without what would move a cursor: whoever answered may be no server of ours.
fn plain(text: &str) -> String {
    printable::letters(text).collect()
}

/// One word of a shell, whatever is in it.
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
    fn a_word_stays_one_word_whatever_is_in_it() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME; rm *"), r"'it'\''s $HOME; rm *'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_log_is_told_without_what_would_move_a_cursor() {
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
             the network policy refused 2; the last was 192.0.2.1:80\n\n\
             console:\n  Kernel panic\n  \\u{202e}x\n"
        );
        let mut nothing = Vec::new();
        print_log(&mut nothing, &json!({})).unwrap();
    }
}
