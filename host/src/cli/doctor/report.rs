// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The doctor's report, as a table for people and as JSON for programs.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde_json::{Value, json};
use waggle_shared::printable;

use super::{boot::Boot, checks::Check, fix::Fix};
use crate::{
    cli::terminal::{Colour, Palette},
    machines::CheckOutcome,
};

/// Maximum bytes of what a check found: enough for an error with its causes.
const FOUND_BYTES_MAX: usize = 3000;

/// The outcome of all checks and of the boot.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The back end with the reason for its choice, or the reason why no back end works.
    pub(super) backend: Result<String, String>,
    pub(super) checks: Vec<Check>,
    pub(super) boot: Boot,
}

impl Report {
    fn is_ok(&self) -> bool {
        !self.checks.iter().any(Check::is_blocking) && !matches!(self.boot, Boot::Failed(..))
    }

    /// Returns success if machines can run on this host.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Prints the report for people.
    pub(super) fn print(&self, out: &mut impl Write, palette: Palette) -> io::Result<()> {
        for check in &self.checks {
            let (state, found) = state(&check.outcome);
            let found = printable::text(found, FOUND_BYTES_MAX);
            let colour = match (&check.outcome, check.needed) {
                (CheckOutcome::Works(_), _) => Colour::Green,
                (CheckOutcome::Missing(_) | CheckOutcome::Broken(_), true) => Colour::Red,
                (CheckOutcome::Missing(_) | CheckOutcome::Broken(_), false) => Colour::Yellow,
            };
            let state = format!("{state:<8}");
            writeln!(out, "{} {:<19} {found}", palette.paint(colour, &state), check.name)?;
            if let Some(fix) = &check.fix {
                let need = if check.needed { "needed" } else { "not needed here" };
                let why = format!("{need}: {}", check.why);
                writeln!(out, "{:28} {}", "", palette.paint(Colour::Dim, &why))?;
                for line in lines(fix) {
                    writeln!(out, "{:28} {line}", "")?;
                }
            }
        }
        match &self.backend {
            Ok(backend) => writeln!(out, "\nback end: {backend}")?,
            Err(fault) => writeln!(out, "\nno back end works here: {fault}")?,
        }
        self.print_boot(out, palette)
    }

    fn print_boot(&self, out: &mut impl Write, palette: Palette) -> io::Result<()> {
        let stages = |took: &[(&str, u128)]| {
            let stages: Vec<_> = took.iter().map(|(name, ms)| format!("{name} {ms} ms")).collect();
            stages.join(", ")
        };
        match &self.boot {
            Boot::Booted(took) => {
                writeln!(
                    out,
                    "{}: {}",
                    palette.paint(Colour::Bold, "a machine booted, ran a command and ended"),
                    stages(took)
                )
            }
            Boot::Failed(took, fault, step) => {
                let fault = format!("failed to boot a machine: {fault}");
                writeln!(out, "{} ({})", palette.paint(Colour::Red, &fault), stages(took))?;
                step.iter().try_for_each(|step| writeln!(out, "hint: {step}"))
            }
            Boot::Skipped(why) => writeln!(out, "booted no machine: {why}"),
        }
    }

    /// The report for programs.
    pub(super) fn json(&self) -> Value {
        let checks: Vec<_> = self.checks.iter().map(check_json).collect();
        let stages = |took: &[(&str, u128)]| {
            let stages =
                took.iter().map(|(name, ms)| ((*name).to_owned(), json!(u64::try_from(*ms).unwrap_or(u64::MAX))));
            Value::Object(stages.collect())
        };
        let boot = match &self.boot {
            Boot::Booted(took) => json!({"state": "ok", "stages_ms": stages(took)}),
            Boot::Failed(took, fault, step) => {
                json!({"state": "failed", "stages_ms": stages(took), "reason": fault, "hint": step})
            }
            Boot::Skipped(why) => json!({"state": "not tried", "reason": why}),
        };
        let backend = match &self.backend {
            Ok(backend) => json!({"chosen": backend}),
            Err(fault) => json!({"fault": fault}),
        };
        json!({"ok": self.is_ok(), "backend": backend, "checks": checks, "boot": boot})
    }
}

fn check_json(check: &Check) -> Value {
    let (state, found) = state(&check.outcome);
    let mut value = json!({
        "name": check.name, "state": state, "found": found, "needed": check.needed, "why": check.why,
    });
    if let (Some(fix), Some(object)) = (&check.fix, value.as_object_mut()) {
        let fix = json!({"debian": fix.debian, "fedora": fix.fedora, "arch": fix.arch});
        object.insert("mend".to_owned(), fix);
    }
    value
}

fn state(outcome: &CheckOutcome) -> (&'static str, &str) {
    match outcome {
        CheckOutcome::Works(found) => ("ok", found),
        CheckOutcome::Missing(found) => ("missing", found),
        CheckOutcome::Broken(found) => ("broken", found),
    }
}

fn lines(fix: &Fix) -> Vec<String> {
    if fix.debian == fix.fedora && fix.fedora == fix.arch {
        return vec![format!("fix     {}", fix.debian)];
    }
    [("Debian", fix.debian), ("Fedora", fix.fedora), ("Arch", fix.arch)]
        .map(|(name, command)| format!("{name:<7} {command}"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::fix::fix;

    fn check(name: &'static str, needed: bool, outcome: CheckOutcome) -> Check {
        Check { name, fix: fix(name, &outcome), outcome, needed, why: "does it" }
    }

    fn report(needed: bool, boot: Boot) -> Report {
        let checks = vec![check("mkfs.ext4", needed, CheckOutcome::Missing("found no mkfs.ext4".into()))];
        Report { backend: Ok("qemu".into()), checks, boot }
    }

    #[test]
    fn host_is_ok_unless_something_needed_fails() {
        assert!(report(false, Boot::Booted(vec![])).is_ok());
        assert!(report(false, Boot::Skipped("--no-boot".into())).is_ok());
        assert!(!report(true, Boot::Skipped("x".into())).is_ok());
        assert!(!report(false, Boot::Failed(vec![], "x".into(), None)).is_ok());
    }

    #[test]
    fn missing_program_has_a_command_for_each_distribution() {
        let mut out = Vec::new();
        report(true, Boot::Skipped("x".into()))
            .print(&mut out, Palette::of(&tempfile::tempfile().unwrap(), &|_| None))
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in ["missing  mkfs.ext4", "needed: does it", "Debian  apt-get install e2fsprogs", "dnf", "pacman"] {
            assert!(text.contains(line), "{line}:\n{text}");
        }
        let json = report(true, Boot::Booted(vec![("boot", 12)])).json();
        assert_eq!(json["checks"][0]["mend"]["arch"], "pacman -S e2fsprogs");
        assert_eq!((&json["ok"], &json["boot"]["stages_ms"]["boot"]), (&json!(false), &json!(12)));
    }
}
