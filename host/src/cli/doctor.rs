// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle doctor`: checks whether machines can run on this host, shows fixes for failed checks, and boots a machine.

mod boot;
mod checks;
mod fix;
mod report;
mod resources;

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;

use self::{boot::Boot, report::Report};
use super::terminal::{Palette, Spinner};
use crate::config::{self, Settings, process_variable};

/// The arguments of `waggle doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  waggle doctor
  waggle doctor --no-boot --json | jq '.checks[] | select(.state != \"ok\")'
  waggle doctor --backend krun

The exit code is 0 if machines can run here, otherwise 1. --help lists the settings, as for `waggle serve`.")]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only check; boot no machine
    #[arg(long)]
    pub no_boot: bool,
    /// The settings, as for `waggle serve`.
    #[command(flatten)]
    pub settings: Settings,
}

/// Checks the host, boots a machine, and prints the report; returns success if machines can run here.
///
/// # Errors
/// The folders are unknown, or the output is closed.
pub(super) async fn doctor(arguments: &DoctorArguments) -> Result<ExitCode, Box<dyn Error>> {
    let settings = &arguments.settings;
    let folders = settings.folders(&process_variable)?;
    let images = config::images(settings, &folders.data, &|folder| folder.join("oci-layout").is_file())?;
    let spinner = Spinner::start();
    spinner.show("checking this host");
    let (backend, checks) = checks::all(settings, &folders, &images).await;
    let boot = if arguments.no_boot {
        Boot::Skipped("--no-boot".to_owned())
    } else if let Some(check) = checks.iter().find(|check| check.is_blocking()) {
        Boot::Skipped(format!("fix {} first", check.name))
    } else {
        boot::boot(settings, &folders, &images, &|stage| spinner.show(stage)).await
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
