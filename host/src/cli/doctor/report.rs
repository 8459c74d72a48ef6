// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the doctor found, as a table for people and as JSON for programs.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{Check, boot::Boot, mend::Mend};
use crate::{
    cli::terminal::{Colour, Palette},
    machines::Look,
};

/// Everything that was found.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// What runs machines here, and why; or why nothing does.
    pub(super) backend: Result<String, String>,
    pub(super) checks: Vec<Check>,
    pub(super) boot: Boot,
}

impl Report {
    fn is_well(&self) -> bool {
        !self.checks.iter().any(Check::stands_in_the_way) && !matches!(self.boot, Boot::Failed(..))
    }

    /// Success is a host on which machines run.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// For a person.
    pub(super) fn print(&self, out: &mut impl Write, palette: Palette) -> io::Result<()> {
        for check in &self.checks {
            let (state, found) = told(&check.look);
            let colour = match (&check.look, check.needed) {
                (Look::Works(_), _) => Colour::Green,
                (Look::Missing(_) | Look::Broken(_), true) => Colour::Red,
                (Look::Missing(_) | Look::Broken(_), false) => Colour::Yellow,
            };
            let state = format!("{state:<8}");
            writeln!(out, "{} {:<19} {found}", palette.paint(colour, &state), check.name)?;
            if let Some(mend) = &check.mend {
                let need = if check.needed { "needed" } else { "not needed here" };
                let why = format!("{need}: {}", check.why);
                writeln!(out, "{:28} {}", "", palette.paint(Colour::Dim, &why))?;
                for line in lines(mend) {
                    writeln!(out, "{:28} {line}", "")?;
                }
            }
        }
        match &self.backend {
            Ok(backend) => writeln!(out, "\nmachines run by {backend}")?,
            Err(fault) => writeln!(out, "\nnothing runs machines here: {fault}")?,
        }
        self.print_boot(out, palette)
    }

    fn print_boot(&self, out: &mut impl Write, palette: Palette) -> io::Result<()> {
        let stages = |took: &[(&str, u128)]| {
            let stages: Vec<_> = took.iter().map(|(name, ms)| format!("{name} {ms} ms")).collect();
            stages.join(", ")
        };
        match &self.boot {
            Boot::Went(took) => {
                writeln!(
                    out,
                    "{}: {}",
                    palette.paint(Colour::Bold, "a machine booted, answered and ended"),
                    stages(took)
                )
            }
            Boot::Failed(took, fault, step) => {
                let fault = format!("no machine boots: {fault}");
                writeln!(out, "{} ({})", palette.paint(Colour::Red, &fault), stages(took))?;
                step.iter().try_for_each(|step| writeln!(out, "hint: {step}"))
            }
            Boot::NotTried(why) => writeln!(out, "no machine was booted: {why}"),
        }
    }

    /// For a program.
    pub(super) fn json(&self) -> Value {
        let checks: Vec<_> = self.checks.iter().map(check_json).collect();
        let stages = |took: &[(&str, u128)]| {
            let stages =
                took.iter().map(|(name, ms)| ((*name).to_owned(), json!(u64::try_from(*ms).unwrap_or(u64::MAX))));
            Value::Object(stages.collect())
        };
        let boot = match &self.boot {
            Boot::Went(took) => json!({"state": "ok", "stages_ms": stages(took)}),
            Boot::Failed(took, fault, step) => {
                json!({"state": "failed", "stages_ms": stages(took), "reason": fault, "hint": step})
            }
            Boot::NotTried(why) => json!({"state": "not tried", "reason": why}),
        };
        let backend = match &self.backend {
            Ok(backend) => json!({"chosen": backend}),
            Err(fault) => json!({"fault": fault}),
        };
        json!({"ok": self.is_well(), "backend": backend, "checks": checks, "boot": boot})
    }
}

fn check_json(check: &Check) -> Value {
    let (state, found) = told(&check.look);
    let mut value = json!({
        "name": check.name, "state": state, "found": found, "needed": check.needed, "why": check.why,
    });
    if let (Some(mend), Some(object)) = (&check.mend, value.as_object_mut()) {
        let mend = json!({"debian": mend.debian, "fedora": mend.fedora, "arch": mend.arch});
        object.insert("mend".to_owned(), mend);
    }
    value
}

fn told(look: &Look) -> (&'static str, &str) {
    match look {
        Look::Works(found) => ("ok", found),
        Look::Missing(found) => ("missing", found),
        Look::Broken(found) => ("broken", found),
    }
}

fn lines(mend: &Mend) -> Vec<String> {
    if mend.debian == mend.fedora && mend.fedora == mend.arch {
        return vec![format!("mend    {}", mend.debian)];
    }
    [("Debian", mend.debian), ("Fedora", mend.fedora), ("Arch", mend.arch)]
        .map(|(name, command)| format!("{name:<7} {command}"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::mend::mend;

    fn check(name: &'static str, needed: bool, look: Look) -> Check {
        Check { name, mend: mend(name, &look), look, needed, why: "does it" }
    }

    fn report(needed: bool, boot: Boot) -> Report {
        let checks = vec![check("mkfs.ext4", needed, Look::Missing("found no mkfs.ext4".into()))];
        Report { backend: Ok("qemu".into()), checks, boot }
    }

    #[test]
    fn a_host_is_well_unless_something_that_it_needs_does_not_work() {
        assert!(report(false, Boot::Went(vec![])).is_well());
        assert!(report(false, Boot::NotTried("not asked for".into())).is_well());
        assert!(!report(true, Boot::NotTried("x".into())).is_well());
        assert!(!report(false, Boot::Failed(vec![], "x".into(), None)).is_well());
    }

    #[test]
    fn what_is_missing_has_its_command_for_each_distribution() {
        let mut out = Vec::new();
        report(true, Boot::NotTried("x".into()))
            .print(&mut out, Palette::of(&tempfile::tempfile().unwrap(), &|_| None))
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in ["missing  mkfs.ext4", "needed: does it", "Debian  apt-get install e2fsprogs", "dnf", "pacman"] {
            assert!(text.contains(line), "{line}:\n{text}");
        }
        let json = report(true, Boot::Went(vec![("boot", 12)])).json();
        assert_eq!(json["checks"][0]["mend"]["arch"], "pacman -S e2fsprogs");
        assert_eq!((&json["ok"], &json["boot"]["stages_ms"]["boot"]), (&json!(false), &json!(12)));
    }
}
