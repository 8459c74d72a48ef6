// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of templates, from which environments start.

use clap::Args;

use crate::machines::TemplateSettings;

/// The settings of templates.
#[derive(Args, Clone, Debug)]
pub struct Templates {
    /// Maximum number of templates, 0 to 100: a template is a machine that has booted, from which environments with the
    /// same image and sizes start; with 0 every environment boots
    #[arg(long = "templates", id = "templates", default_value_t = 6, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub count: u32,
    /// Maximum memory of all templates together, in MiB, 64 to 1048576; above it the least recently used are removed
    #[arg(long = "templates-max-mb", id = "templates_max_mb", default_value_t = 1024, value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub max_mb: u32,
    /// Whether environments of different callers start from the same template, which saves memory; see
    /// docs/threat-model.md for what they share
    #[arg(long = "shared-templates", id = "shared_templates", default_value_t = false, value_name = "true|false")]
    #[arg(action = clap::ArgAction::Set, hide_possible_values = true)]
    pub are_shared: bool,
    /// Whether the interpreters of an image run once before its template is taken, so that the first call of an
    /// environment is as fast as the second
    #[arg(long = "warm-templates", id = "warm_templates", default_value_t = true, value_name = "true|false")]
    #[arg(action = clap::ArgAction::Set, hide_possible_values = true)]
    pub are_warm: bool,
    /// Whether the templates of the three runtimes are made when the server starts, if their images are on this host;
    /// not with tokens, unless templates are shared
    #[arg(long = "templates-at-start", id = "templates_at_start", default_value_t = true, value_name = "true|false")]
    #[arg(action = clap::ArgAction::Set, hide_possible_values = true)]
    pub at_start: bool,
}

impl Templates {
    #[must_use]
    pub fn settings(&self) -> TemplateSettings {
        TemplateSettings {
            count: usize::try_from(self.count).unwrap_or(usize::MAX),
            bytes: u64::from(self.max_mb) << 20,
            are_shared: self.are_shared,
            are_warm: self.are_warm,
        }
    }
}
