// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of `waggle serve`: a flag comes before its `WAGGLE_*` variable, and that before the default.
//!
//! Reading them is a pure function of the arguments and of a look-up for variables; an invalid value of either is an
//! error that names it. Whether a folder or an image is there is not decided here, with one exception: a runtime whose
//! image is not set takes the project's own one if its layout has been built.

mod access;
pub mod duration;
mod images;
mod secret_parser;
mod table;

use std::{
    ffi::{OsStr, OsString},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

pub use self::{
    access::Access,
    images::{ImageArguments, ImageCommand, ImageSettings, PullImages},
    secret_parser::SecretParser,
    table::settings_page,
};
use crate::{
    domain::{
        command::CommandLimits,
        defences::Relaxed,
        egress::Policy,
        image::ImageRef,
        runtime::{ByRuntime, CommandLine, Runtime},
    },
    machines::WantedBackend,
    network::{
        Proxy,
        proxy_file::{self, ProxyFileFault},
    },
    service::execution::OperatorCommands,
};

/// What every variable begins with.
pub const VARIABLE_PREFIX: &str = "WAGGLE_";

/// Variables of an earlier version that mean nothing any more.
const RETIRED: [&str; 5] = ["SSH_PORT_BASE", "SSH_PORT_MAX", "RUNNER_PATH", "INIT_PATH", "LIB_DIR"];

/// The official images by their full references, for runtimes whose own image has not been built.
const OFFICIAL_IMAGES: ByRuntime<&str> = ByRuntime {
    python: "docker.io/library/python:3-slim",
    node: "docker.io/library/node:lts-slim",
    shell: "docker.io/library/debian:stable-slim",
};

/// The settings of `waggle serve`. Every flag is also a variable: `--listen-addr` is `WAGGLE_LISTEN_ADDR`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address to serve MCP on
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = parse_address, value_name = "HOST:PORT")]
    pub listen_addr: SocketAddr,
    /// Who may call, and how much.
    #[command(flatten)]
    pub access: Access,
    /// How many environments there can be at once, 1 to 1000
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "COUNT")]
    pub max_environments: u32,
    /// Virtual CPUs of an environment, 1 to 64; libkrun gives at most 16
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "COUNT")]
    pub default_cpus: u32,
    /// Memory of an environment, in MiB, 128 to 1048576
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=1_048_576), value_name = "MIB")]
    pub default_memory_mb: u32,
    /// Scratch disk of an environment, in MiB, 64 to 1048576; it takes room only as it fills
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(64..=1_048_576), value_name = "MIB")]
    pub default_disk_mb: u32,
    /// Minutes without a call after which an environment is destroyed, 1 to 60, where its client says nothing else
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=60), value_name = "MINUTES")]
    pub default_timeout_min: u32,
    /// Time-out of a call of execute that says nothing else
    #[arg(long, default_value = "30s", value_parser = duration::parse, value_name = "DURATION")]
    pub default_exec_timeout: Duration,
    /// The longest time-out that a call of execute can ask for
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub max_exec_timeout: Duration,
    /// Time-out of a call of install_packages
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub install_timeout: Duration,
    /// Most processes and threads of one call, 16 to 8192
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=8192), value_name = "COUNT")]
    pub exec_pids: u32,
    /// Most open files of one process, 64 to 1048576
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(64..=1_048_576), value_name = "COUNT")]
    pub exec_open_files: u32,
    /// Most memory of one call, in MiB, 16 to 1048576 [default: what the environment has, less 48 MiB]
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=1_048_576), value_name = "MIB")]
    pub exec_memory_mb: Option<u32>,
    /// Defences inside the guests to switch off, separated by commas: namespaces, capabilities, no-new-privileges,
    /// filter, or all
    #[arg(long, default_value = "", value_name = "DEFENCES", hide_default_value = true)]
    pub relax: Relaxed,
    /// What programs in the guests may connect to: none, public (the internet, but no private networks), or rules
    /// separated by commas, of which the first that matches decides, as in docs/network.md
    #[arg(long, default_value = "public", value_name = "POLICY")]
    pub egress: Policy,
    /// HTTP proxy through which the guests' connections go, as http://[USER:PASSWORD@]HOST:PORT; a password on the
    /// command line is visible in ps, in --egress-proxy-file it is not
    #[arg(long, value_parser = SecretParser::<Proxy>::NEW, value_name = "URL")]
    pub egress_proxy: Option<Proxy>,
    /// File with that URL, in place of --egress-proxy; it has to be the server's alone (mode 0600)
    #[arg(long, value_name = "FILE")]
    pub egress_proxy_file: Option<PathBuf>,
    /// File with certificates in PEM that the guests are to trust, besides those of their images
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// How long a machine may take to boot, from when its image is ready
    #[arg(long, default_value = "2m", value_parser = duration::parse, value_name = "DURATION")]
    pub boot_timeout: Duration,
    /// How often environments are looked at for having idled too long
    #[arg(long, default_value = "1m", value_parser = duration::parse, value_name = "DURATION")]
    pub reaper_interval: Duration,
    /// Folder for machines and disks [default: the XDG data folder, waggle/]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Where images are kept, and where they come from.
    #[command(flatten)]
    pub image_store: ImageSettings,
    /// When images that are in registries are pulled: on-demand, by the first environment that needs one, or at-start,
    /// which also asks again what their tags mean
    #[arg(long, default_value = "on-demand", value_name = "on-demand|at-start", hide_possible_values = true)]
    pub pull_images: PullImages,
    /// Image for python environments [default: the OCI layout images/python in the data folder if there is one, else
    /// docker.io/library/python:3-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_python: Option<ImageRef>,
    /// Image for node environments [default: images/node there, else docker.io/library/node:lts-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_node: Option<ImageRef>,
    /// Image for shell environments [default: images/shell there, else docker.io/library/debian:stable-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_shell: Option<ImageRef>,
    /// Command that runs python code, in place of what the image has
    #[arg(long, value_name = "COMMAND")]
    pub runtime_python_exec_command: Option<CommandLine>,
    /// Command that installs python packages
    #[arg(long, value_name = "COMMAND")]
    pub runtime_python_install_command: Option<CommandLine>,
    /// Command that runs node code
    #[arg(long, value_name = "COMMAND")]
    pub runtime_node_exec_command: Option<CommandLine>,
    /// Command that installs node packages
    #[arg(long, value_name = "COMMAND")]
    pub runtime_node_install_command: Option<CommandLine>,
    /// Command that runs shell scripts
    #[arg(long, value_name = "COMMAND")]
    pub runtime_shell_exec_command: Option<CommandLine>,
    /// Command that installs packages in shell environments
    #[arg(long, value_name = "COMMAND")]
    pub runtime_shell_install_command: Option<CommandLine>,
    /// What runs the machines: krun is libkrun and needs KVM, qemu does without where it has to, and auto takes the
    /// best that works
    #[arg(long, default_value = "auto", value_name = "auto|krun|qemu", hide_possible_values = true)]
    pub backend: WantedBackend,
    /// libkrunfw.so.5 with the kernel of libkrun's guests, or its folder [default: the one in the program; where it has
    /// none, next to it, else where the system has libraries]
    #[arg(long, value_name = "PATH")]
    pub firmware: Option<PathBuf>,
    /// Folder with the kernel of QEMU's guests: vmlinuz and modules [default: kernel/ in the data folder]
    #[arg(long, value_name = "FOLDER")]
    pub kernel: Option<PathBuf>,
    /// How much the machines say in the log, 0 to 5; above 3 it holds internals of the hypervisor
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=5), value_name = "LEVEL")]
    pub log_level: u8,
}

/// What a look-up for variables is.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The warnings that the variables give rise to.
#[must_use]
pub fn warnings(variable: Lookup<'_>) -> Vec<String> {
    let set = RETIRED.iter().map(|name| format!("{VARIABLE_PREFIX}{name}")).filter(|name| variable(name).is_some());
    set.map(|name| format!("{name} has no meaning any more; there is no SSH and no helper program to find")).collect()
}

/// Gives a command that takes settings their variables: a value takes the place of the default, the help names it.
/// What is no setting keeps what it is.
#[must_use]
pub fn with_variables(command: clap::Command, variable: Lookup<'_>) -> clap::Command {
    let settings = Settings::augment_args(clap::Command::new(""));
    let is_setting =
        |argument: &clap::Arg| settings.get_arguments().any(|setting| setting.get_id() == argument.get_id());
    command.mut_args(|argument| {
        if !is_setting(&argument) {
            return argument;
        }
        let name = variable_name(argument.get_id().as_str());
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let argument = argument.help(format!("{help} [env: {name}]"));
        match variable(&name) {
            Some(value) => argument.hide_default_value(true).default_value(value),
            None => argument,
        }
    })
}

fn variable_name(id: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", id.to_ascii_uppercase())
}

impl Settings {
    /// What one value alone does not show.
    ///
    /// # Errors
    /// A sentence that names the settings.
    pub fn check(&self) -> Result<(), String> {
        if self.default_exec_timeout > self.max_exec_timeout {
            let (default, max) = (duration::format(self.default_exec_timeout), duration::format(self.max_exec_timeout));
            return Err(format!("--default-exec-timeout ({default}) is above --max-exec-timeout ({max})"));
        }
        if self.egress_proxy.is_some() && self.egress_proxy_file.is_some() {
            return Err("--egress-proxy (WAGGLE_EGRESS_PROXY) and --egress-proxy-file (WAGGLE_EGRESS_PROXY_FILE) are \
                        both set; set one of them"
                .to_owned());
        }
        self.access.check(self.listen_addr)
    }

    /// The guests' proxy, from the flag, the variable or the file.
    ///
    /// # Errors
    /// [`ProxyFileFault`] if the file cannot be used.
    pub fn proxy(&self) -> Result<Option<Proxy>, ProxyFileFault> {
        match &self.egress_proxy_file {
            Some(path) => proxy_file::read(path).map(Some),
            None => Ok(self.egress_proxy.clone()),
        }
    }

    /// What one call may use.
    #[must_use]
    pub fn command_limits(&self) -> CommandLimits {
        CommandLimits {
            memory_bytes: self.exec_memory_mb.map(|mib| u64::from(mib) * 1024 * 1024),
            pids: Some(self.exec_pids),
            open_files: Some(self.exec_open_files),
        }
    }

    /// The operator's commands.
    #[must_use]
    pub fn commands(&self) -> ByRuntime<OperatorCommands> {
        let both = |exec: &Option<CommandLine>, install: &Option<CommandLine>| OperatorCommands {
            exec: exec.clone(),
            install: install.clone(),
        };
        ByRuntime {
            python: both(&self.runtime_python_exec_command, &self.runtime_python_install_command),
            node: both(&self.runtime_node_exec_command, &self.runtime_node_install_command),
            shell: both(&self.runtime_shell_exec_command, &self.runtime_shell_install_command),
        }
    }
}

/// The folders that the settings name, or the user's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Folders {
    /// For machines and disks.
    pub data: PathBuf,
    /// For prepared images.
    pub images: PathBuf,
    /// With the guests' kernel.
    pub kernel: PathBuf,
}

impl Folders {
    /// The folders, by the XDG base directory specification where the settings are silent.
    ///
    /// # Errors
    /// [`FoldersFault`] if neither a setting nor the user's home says where.
    pub fn of(settings: &Settings, variable: Lookup<'_>) -> Result<Self, FoldersFault> {
        let data = settings.data_dir.clone();
        let data = data.or_else(|| xdg(variable, "XDG_DATA_HOME", ".local/share").map(|base| base.join("waggle")));
        let data = data.ok_or(FoldersFault::Unset { setting: "DATA_DIR" })?;
        let kernel = settings.kernel.clone().unwrap_or_else(|| data.join("kernel"));
        Ok(Self {
            data: anchored("DATA_DIR", data)?,
            images: settings.image_store.folder(variable)?,
            kernel: anchored("KERNEL", kernel)?,
        })
    }
}

/// A folder of the XDG base directory specification, which has relative paths ignored.
fn xdg(variable: Lookup<'_>, name: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(name).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// Runners work in folders of their own, so a relative path would mean another place to them.
fn anchored(setting: &'static str, path: PathBuf) -> Result<PathBuf, FoldersFault> {
    std::path::absolute(&path).map_err(|source| FoldersFault::Relative { setting, path, source })
}

/// A folder cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum FoldersFault {
    /// It is neither set nor to be had.
    #[error("failed to choose a folder: {VARIABLE_PREFIX}{setting} is not set, and there is no HOME either")]
    Unset {
        /// Without the prefix.
        setting: &'static str,
    },
    /// It cannot be made absolute.
    #[error("failed to find out where {VARIABLE_PREFIX}{setting} is: {}", path.display())]
    Relative {
        /// Without the prefix.
        setting: &'static str,
        /// As it was given.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The image of each runtime: as set, else the project's own if `has_layout` says that its folder is one, else the
/// official one.
///
/// # Errors
/// [`ImageDefaultFault`] if the path of the project's own images cannot be written as a reference.
pub fn images(
    settings: &Settings,
    data: &Path,
    has_layout: &dyn Fn(&Path) -> bool,
) -> Result<ByRuntime<ImageRef>, ImageDefaultFault> {
    let choose = |set: &Option<ImageRef>, runtime: Runtime| match set {
        Some(image) => Ok(image.clone()),
        None => {
            let own = data.join("images").join(runtime.name());
            let reference = if has_layout(&own) {
                format!("oci:{}", own.display())
            } else {
                (*OFFICIAL_IMAGES.of(runtime)).to_owned()
            };
            reference.parse().map_err(|source| ImageDefaultFault { reference, source: Box::new(source) })
        }
    };
    Ok(ByRuntime {
        python: choose(&settings.image_python, Runtime::Python)?,
        node: choose(&settings.image_node, Runtime::Node)?,
        shell: choose(&settings.image_shell, Runtime::Shell)?,
    })
}

/// A default image has no reference.
#[derive(Debug, thiserror::Error)]
#[error("failed to use {reference} as an image; set WAGGLE_IMAGE_PYTHON, _NODE and _SHELL")]
pub struct ImageDefaultFault {
    reference: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let fault = || "an address is HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or localhost:8080".to_owned();
    let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    match text.strip_prefix(':') {
        Some(port) => port.parse().map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map_err(|_| fault()),
        None => text.parse().map_err(|_| fault()),
    }
}

/// The process's own variables.
#[must_use]
pub fn process_variable(name: &str) -> Option<OsString> {
    std::env::var_os(OsStr::new(name))
}

#[cfg(test)]
mod tests;
