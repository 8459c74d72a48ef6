// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of the image store, and the command line of `waggle image`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use waggle_images::{
    cache::{EvictionRules, ImageStoreSettings},
    reference::ImageRef,
    registry::{PlainHosts, RegistrySettings},
};
use waggle_shared::disk_reserve::DiskReserve;

use super::{
    duration,
    folders::{FoldersFault, absolute, xdg},
    variables::Lookup,
};

/// The settings of the image store.
#[derive(Args, Clone, Debug)]
pub struct ImageSettings {
    /// Folder for pulled and prepared images [default: the XDG cache folder, waggle/images/]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub image_cache_dir: Option<PathBuf>,
    /// Time without use after which an image is removed
    #[arg(long, global = true, default_value = "168h", value_parser = duration::parse, value_name = "DURATION")]
    pub image_cache_max_age: Duration,
    /// Maximum size of all images together, in MiB; above this size the least recently used images are removed, except
    /// images in use [default: no limit]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..), value_name = "MIB")]
    pub image_cache_max_mb: Option<u32>,
    /// Maximum size of the images that only clients have named, in MiB, 0 to 1048576; above this size the least
    /// recently used of them are removed, except images in use
    #[arg(long, global = true, default_value_t = 10_240, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    #[arg(value_name = "MIB")]
    pub client_images_max_mb: u32,
    /// Free space that must remain on the disks of the data folder and of the image folder, in MiB, 0 to 1048576; below
    /// it no environment is created and no image is pulled or prepared; no image is evicted for it
    #[arg(long, global = true, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    #[arg(value_name = "MIB")]
    pub disk_reserve_mb: u32,
    /// Registries that may be used without TLS, as HOST or HOST:PORT, separated by commas; registries on this machine
    /// may always be used without TLS
    #[arg(long, global = true, default_value = "", value_name = "REGISTRIES", hide_default_value = true)]
    pub insecure_registries: PlainHosts,
}

/// The command line of `waggle image`.
#[derive(Args, Clone, Debug)]
pub struct ImageArguments {
    /// The image store.
    #[command(flatten)]
    pub store: ImageSettings,
    /// The command.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// The commands of `waggle image`.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull and prepare images, and resolve their tags again
    Pull {
        /// References, such as python:3.13, ghcr.io/owner/name:1.0 or oci:FOLDER
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<ImageRef>,
        /// Print a JSON object per image
        #[arg(long)]
        json: bool,
    },
    /// List the images in the cache
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the details of an image
    Inspect {
        /// Reference, digest, or the beginning of a digest
        #[arg(value_name = "IMAGE")]
        image: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Verify that merged images still have the content that was written, and remove damaged ones
    Verify {
        /// References, digests, or beginnings of digests [default: all images in the cache]
        #[arg(value_name = "IMAGE")]
        images: Vec<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove images that are not in use
    Rm {
        /// References, which are removed, or digests, whose images are removed with all their references
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove images that exceed the limits of age and size, and files that no image needs
    Prune {
        /// Remove everything that is not in use
        #[arg(long)]
        all: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The time when images are pulled.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum PullImages {
    /// When the first environment needs the image
    OnDemand,
    /// When the server starts
    AtStart,
}

impl ImageSettings {
    /// Returns the folder in the settings, or the default of the XDG base directory specification.
    ///
    /// # Errors
    /// [`FoldersFault`].
    pub fn folder(&self, variable: Lookup<'_>) -> Result<PathBuf, FoldersFault> {
        let by_default = || xdg(variable, "XDG_CACHE_HOME", ".cache").map(|base| base.join("waggle/images"));
        let folder = self.image_cache_dir.clone().or_else(by_default);
        absolute("IMAGE_CACHE_DIR", folder.ok_or(FoldersFault::Unset { setting: "IMAGE_CACHE_DIR" })?)
    }

    /// Converts the settings into those of the image store.
    ///
    /// # Errors
    /// [`FoldersFault`] if the folder is unknown.
    pub fn store(&self, variable: Lookup<'_>) -> Result<ImageStoreSettings, FoldersFault> {
        let registries = RegistrySettings { plain: self.insecure_registries.clone(), auth_files: auth_files(variable) };
        Ok(ImageStoreSettings {
            cache_dir: self.folder(variable)?,
            registries,
            rules: self.rules(),
            reserve: self.reserve(),
        })
    }

    /// Returns the space that must remain free on each disk.
    #[must_use]
    pub fn reserve(&self) -> DiskReserve {
        DiskReserve::from_mib(self.disk_reserve_mb)
    }

    /// Returns the rules for the removal of images.
    #[must_use]
    pub fn rules(&self) -> EvictionRules {
        let bytes = |mib| u64::from(mib) * 1024 * 1024;
        EvictionRules {
            age_max: Some(self.image_cache_max_age),
            bytes_max: self.image_cache_max_mb.map(bytes),
            clients_bytes_max: Some(bytes(self.client_images_max_mb)),
        }
    }
}

/// Returns the files with registry credentials: first podman's (containers-auth.json(5)), then docker's `config.json`.
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
    fn finds_the_credentials_of_podman_and_docker() {
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
