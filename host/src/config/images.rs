// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Where images come from and how long they stay: what `waggle serve` and `waggle image` have in common.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{FoldersFault, Lookup, anchored, duration, xdg};
use crate::{
    domain::image::ImageRef,
    images::{
        cache::{EvictionRules, ImageStoreSettings},
        registry::{PlainHosts, RegistrySettings},
    },
};

/// The settings of the image store.
#[derive(Args, Clone, Debug)]
pub struct ImageSettings {
    /// Folder for images that have been pulled and prepared [default: the XDG cache folder, waggle/images/]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub image_cache_dir: Option<PathBuf>,
    /// Images that nobody has used for so long are deleted
    #[arg(long, global = true, default_value = "168h", value_parser = duration::parse, value_name = "DURATION")]
    pub image_cache_max_age: Duration,
    /// Most room that images take, in MiB; beyond it those go that were used longest ago, but none that is in use
    /// [default: no limit]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..), value_name = "MIB")]
    pub image_cache_max_mb: Option<u32>,
    /// Registries that may be spoken to without TLS, as HOST or HOST:PORT, separated by commas; those on this machine
    /// may in any case
    #[arg(long, global = true, default_value = "", value_name = "REGISTRIES", hide_default_value = true)]
    pub insecure_registries: PlainHosts,
}

/// The command line of `waggle image`.
#[derive(Args, Clone, Debug)]
pub struct ImageArguments {
    /// The settings of the image store.
    #[command(flatten)]
    pub store: ImageSettings,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What can be done with images.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull images and make them ready, and ask again what their tags mean
    Pull {
        /// Such as python:3.13, ghcr.io/owner/name:1.0, oci:FOLDER
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<ImageRef>,
        /// One JSON object an image
        #[arg(long)]
        json: bool,
    },
    /// List the images that are here
    Ls {
        /// A JSON array
        #[arg(long)]
        json: bool,
    },
    /// Say everything about an image
    Inspect {
        /// Its reference, or its digest or the beginning of that
        #[arg(value_name = "IMAGE")]
        image: String,
        /// A JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove images that are not in use
    Rm {
        /// References, which are forgotten, or digests, whose images go with all their names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// A JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove images that are too old or too many, and what no image needs
    Prune {
        /// Everything that is not in use
        #[arg(long)]
        all: bool,
        /// A JSON object
        #[arg(long)]
        json: bool,
    },
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum PullImages {
    /// By the first environment that needs one
    OnDemand,
    /// When the server starts
    AtStart,
}

impl ImageSettings {
    /// The folder, by the XDG base directory specification where the settings are silent.
    ///
    /// # Errors
    /// [`FoldersFault`] if neither a setting nor the user's home says where.
    pub fn folder(&self, variable: Lookup<'_>) -> Result<PathBuf, FoldersFault> {
        let by_default = || xdg(variable, "XDG_CACHE_HOME", ".cache").map(|base| base.join("waggle/images"));
        let folder = self.image_cache_dir.clone().or_else(by_default);
        anchored("IMAGE_CACHE_DIR", folder.ok_or(FoldersFault::Unset { setting: "IMAGE_CACHE_DIR" })?)
    }

    /// What the image store needs to know.
    ///
    /// # Errors
    /// [`FoldersFault`] if nothing says where images are kept.
    pub fn store(&self, variable: Lookup<'_>) -> Result<ImageStoreSettings, FoldersFault> {
        let registries = RegistrySettings { plain: self.insecure_registries.clone(), auth_files: auth_files(variable) };
        Ok(ImageStoreSettings { cache_dir: self.folder(variable)?, registries, rules: self.rules() })
    }

    /// When images go.
    #[must_use]
    pub fn rules(&self) -> EvictionRules {
        let bytes_max = self.image_cache_max_mb.map(|mib| u64::from(mib) * 1024 * 1024);
        EvictionRules { age_max: Some(self.image_cache_max_age), bytes_max }
    }
}

/// Where podman, then docker, keep credentials (containers-auth.json(5), and docker's `config.json`).
fn auth_files(variable: Lookup<'_>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from);
    let podman = match folder("REGISTRY_AUTH_FILE") {
        Some(file) => vec![Some(file)],
        None => [folder("XDG_RUNTIME_DIR"), xdg(variable, "XDG_CONFIG_HOME", ".config")]
            .into_iter()
            .map(|folder| Some(folder?.join("containers/auth.json")))
            .collect(),
    };
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")));
    podman.into_iter().chain([docker.map(|folder| folder.join("config.json"))]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn credentials_are_where_podman_and_docker_keep_them() {
        let look = |known: &[(&str, &str)]| {
            let known: Vec<_> = known.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
            let files =
                auth_files(&|name| known.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()));
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(look(&[("HOME", "/h")]), ["/h/.config/containers/auth.json", "/h/.docker/config.json"]);
        let set = [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")];
        assert_eq!(look(&set), ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"]);
        let named = [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("REGISTRY_AUTH_FILE", "/a")];
        assert_eq!(look(&named), ["/a", "/h/.docker/config.json"]);
        assert_eq!(look(&[]), [""; 0]);
    }
}
