// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle doctor`: says what this host has for machines, what it lacks and how to mend it, and boots one.

mod boot;
mod checks;
mod mend;
mod place;
mod report;

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;

use self::{boot::Boot, checks::Check, report::Report};
use super::terminal::{Palette, Spinner};
use crate::config::{self, Folders, Settings, process_variable};

/// What the doctor is asked.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle doctor
  waggle doctor --no-boot --json | jq '.checks[] | select(.state != \"ok\")'
  waggle doctor --backend krun

The exit code is 0 where machines run and 1 where they do not. It takes the settings of `waggle serve`: --help has them.")]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only look; boot no machine
    #[arg(long)]
    pub no_boot: bool,
    /// As the server would have them.
    #[command(flatten)]
    pub settings: Settings,
}

/// Looks, boots, and prints; success is a host on which machines run.
///
/// # Errors
/// If there is no place to look, or nobody to print to.
pub(super) async fn doctor(arguments: &DoctorArguments) -> Result<ExitCode, Box<dyn Error>> {
    let settings = &arguments.settings;
    let folders = Folders::of(settings, &process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let spinner = Spinner::start();
    spinner.say("looking at this host");
    let (backend, checks) = checks::all(settings, &folders, &images).await;
    let boot = if arguments.no_boot {
        Boot::NotTried("not asked for".to_owned())
    } else if let Some(check) = checks.iter().find(|check| check.stands_in_the_way()) {
        Boot::NotTried(format!("{} has to be mended first", check.name))
    } else {
        boot::boot(settings, &folders, &images, &|stage| spinner.say(stage)).await
    };
    drop(spinner);
    let report = Report { backend, checks, boot };
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{:#}", report.json())?;
    } else {
        report.print(&mut out, Palette::of(&io::stdout(), &process_variable))?;
    }
    Ok(report.exit_code())
}
