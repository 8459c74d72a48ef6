// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The settings of `waggle serve`. A flag takes precedence over its `WAGGLE_*` variable, and the variable over the
//! default.
//!
//! Parsing depends only on the arguments and on a function that looks variables up. The error for an invalid value
//! names the flag. Parsing does not check whether folders and images exist, with one exception: [`images()`] defaults
//! to the project's own image of a runtime if the layout of that image exists.

mod access;
pub mod duration;
mod folders;
mod images;
mod saved;
mod secret_parser;
mod table;
mod templates;
mod variables;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use waggle_images::reference::ImageRef;

pub use self::{
    access::Access,
    folders::{Folders, FoldersFault},
    images::{ImageArguments, ImageCommand, ImageSettings, PullImages},
    saved::{AtEnd, SavedSettings},
    secret_parser::SecretParser,
    variables::{Lookup, process_variable, warnings},
};
use self::{
    folders::{absolute, xdg},
    variables::variable_name,
};
use crate::{
    domain::{
        allowed_images::AllowedImages,
        command::CommandLimits,
        defences::Relaxed,
        egress::Policy,
        machine_size::{DISK_MIB_MIN, MEMORY_MIB_MIN, MachineSize, SizeLimits},
        runtime::{ByRuntime, CommandLine, Runtime},
        shared_limit::SharedLimit,
    },
    machines::{CPUS_MAX, KernelArguments, WantedBackend},
    network::{
        PER_SECOND_DEFAULT, Proxy, Rates,
        proxy_file::{self, ProxyFileFault},
    },
    service::execution::OperatorCommands,
};

/// The official images. A runtime defaults to its official image if the project's own image has not been built.
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
    /// Callers and their limits.
    #[command(flatten)]
    pub access: Access,
    /// Maximum number of environments, 1 to 1000
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "COUNT")]
    pub max_environments: u32,
    /// Virtual CPUs of an environment, 1 to 16
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(CPUS_MAX)))]
    pub default_cpus: u32,
    /// Memory of an environment, in MiB, 128 to 1048576
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    #[arg(value_parser = mib(MEMORY_MIB_MIN))]
    pub default_memory_mb: u32,
    /// Scratch disk of an environment, in MiB, 64 to 1048576; the disk takes space on the host only as programs fill it
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    #[arg(value_parser = mib(DISK_MIB_MIN))]
    pub default_disk_mb: u32,
    /// Maximum number of virtual CPUs that a client can choose for an environment, 1 to 16 [default: the number of
    /// WAGGLE_DEFAULT_CPUS]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPUS_MAX)))]
    pub max_cpus: Option<u32>,
    /// Maximum memory that a client can choose for an environment, in MiB, 128 to 1048576 [default: the memory of
    /// WAGGLE_DEFAULT_MEMORY_MB]
    #[arg(long, value_name = "MIB", value_parser = mib(MEMORY_MIB_MIN))]
    pub max_memory_mb: Option<u32>,
    /// Maximum scratch disk that a client can choose for an environment, in MiB, 64 to 1048576 [default: the disk of
    /// WAGGLE_DEFAULT_DISK_MB]
    #[arg(long, value_name = "MIB", value_parser = mib(DISK_MIB_MIN))]
    pub max_disk_mb: Option<u32>,
    /// Idle timeout: minutes without a call after which an environment is destroyed or suspended, 1 to 60, unless the
    /// client chooses another timeout
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=60), value_name = "MINUTES")]
    pub default_timeout_min: u32,
    /// Suspended and saved environments.
    #[command(flatten)]
    pub saved: SavedSettings,
    /// Timeout of a call of execute that sets no timeout
    #[arg(long, default_value = "30s", value_parser = duration::parse, value_name = "DURATION")]
    pub default_exec_timeout: Duration,
    /// Longest timeout that a call of execute can set
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub max_exec_timeout: Duration,
    /// Timeout of a call of install_packages
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub install_timeout: Duration,
    /// Maximum bytes of each output in the result of execute or install_packages, 1024 to 524288, unless the client
    /// sets another maximum; a file in the environment has the whole output
    #[arg(long, default_value_t = 65_536, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=524_288))]
    pub output_bytes: u32,
    /// Maximum number of processes and threads of one call, 16 to 8192
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=8192), value_name = "COUNT")]
    pub exec_pids: u32,
    /// Maximum number of open files of one process, 64 to 1048576; programs start with at most 65536 and may raise
    /// their limit to this number, but not to more than one file per KiB of the environment's memory
    #[arg(long, default_value_t = 1_048_576, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub exec_open_files: u32,
    /// Memory limit of one call, in MiB, 16 to 1048576 [default: the environment's memory minus 48 MiB]
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=1_048_576), value_name = "MIB")]
    pub exec_memory_mb: Option<u32>,
    /// Defences inside the guests to disable, separated by commas: namespaces, capabilities, no-new-privileges,
    /// filter, or all
    #[arg(long, default_value = "", value_name = "DEFENCES", hide_default_value = true)]
    pub relax: Relaxed,
    /// Destinations that programs in the guests may connect to: none, public (the internet without private networks),
    /// or rules separated by commas; the first rule that matches decides; see docs/network.md
    #[arg(long, default_value = "public", value_name = "POLICY")]
    pub egress: Policy,
    /// Maximum rate at which programs of an environment open connections, per second, 1 to 100000; five seconds' worth
    /// may come at once
    #[arg(long, default_value_t = PER_SECOND_DEFAULT, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub egress_flows_per_second: u32,
    /// Maximum rate of the lookups of names, per second, 1 to 100000; for most names a program makes two, one for each
    /// family of addresses; five seconds' worth may come at once
    #[arg(long, default_value_t = PER_SECOND_DEFAULT, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub egress_lookups_per_second: u32,
    /// HTTP proxy for the guests' connections, as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT; a password on the
    /// command line is visible in ps, a password in --egress-proxy-file is not
    #[arg(long, value_parser = SecretParser::<Proxy>::NEW, value_name = "URL")]
    pub egress_proxy: Option<Proxy>,
    /// File with the proxy's URL, instead of --egress-proxy; the file must belong to the server's user and have mode
    /// 0600
    #[arg(long, value_name = "FILE")]
    pub egress_proxy_file: Option<PathBuf>,
    /// File with certificates in PEM that the guests trust in addition to those of their images
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// Timeout of a machine's boot, counted from the time when the image is ready
    #[arg(long, default_value = "2m", value_parser = duration::parse, value_name = "DURATION")]
    pub boot_timeout: Duration,
    /// Templates of environments.
    #[command(flatten)]
    pub templates: templates::Templates,
    /// Interval of the check for idle environments
    #[arg(long, default_value = "1m", value_parser = duration::parse, value_name = "DURATION")]
    pub reaper_interval: Duration,
    /// Folder for machines, disks and saved environments [default: the XDG data folder, waggle/]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// The image store.
    #[command(flatten)]
    pub image_store: ImageSettings,
    /// Time when images are pulled from registries: on-demand, when the first environment needs the image, or at-start,
    /// when the server starts; at-start also resolves tags again
    #[arg(long, default_value = "on-demand", value_name = "on-demand|at-start", hide_possible_values = true)]
    pub pull_images: PullImages,
    /// Image for python environments [default: the OCI layout images/python in the data folder if it exists, else
    /// docker.io/library/python:3-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_python: Option<ImageRef>,
    /// Image for node environments [default: the OCI layout images/node in the data folder if it exists, else
    /// docker.io/library/node:lts-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_node: Option<ImageRef>,
    /// Image for shell environments [default: the OCI layout images/shell in the data folder if it exists, else
    /// docker.io/library/debian:stable-slim]
    #[arg(long, value_name = "IMAGE")]
    pub image_shell: Option<ImageRef>,
    /// Images that clients may choose, in addition to those of the runtimes: none, any, or patterns separated by
    /// commas, such as ghcr.io/owner/*; images that a pattern names are pulled with the server's credentials and from
    /// any address, others without credentials, over HTTPS, without a proxy, and only from public addresses [default:
    /// any without tokens, none with tokens]
    #[arg(long, value_name = "IMAGES")]
    pub allowed_images: Option<AllowedImages>,
    /// Command that runs python code, instead of the image's interpreter
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
    /// Command that installs system packages: in shell environments, and in others if the client asks for them
    #[arg(long, value_name = "COMMAND")]
    pub runtime_shell_install_command: Option<CommandLine>,
    /// Hypervisor of the machines: krun is libkrun and needs KVM, qemu also works without KVM, and auto chooses the
    /// fastest of them that works; msb is msb_krun, a fork of libkrun, which needs KVM and a build with the feature msb
    #[arg(long, default_value = "auto", value_name = "auto|krun|msb|qemu", hide_possible_values = true)]
    pub backend: WantedBackend,
    /// Path of libkrunfw.so.5, which contains the guests' kernel, or path of the folder with this library
    /// [default: the copy in the program; if the program has no copy, the library next to the program or in the
    /// system's library folders]
    #[arg(long, value_name = "PATH")]
    pub firmware: Option<PathBuf>,
    /// Kernel of QEMU's guests: a vmlinux (an ELF file with a PVH entry) with all drivers built in [default: the kernel
    /// in libkrunfw]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Additional arguments for the kernel of QEMU's guests; without KVM, noapictimer makes a machine with one virtual
    /// CPU start 0.2 s sooner, but an idle machine then takes 1 % of a processor instead of 0.3 %
    #[arg(long, value_name = "ARGUMENTS")]
    pub kernel_args: Option<KernelArguments>,
    /// Verbosity of the machines in the log, 0 to 5; above 3 the log includes internals of the hypervisor
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=5), value_name = "LEVEL")]
    pub log_level: u8,
}

/// Returns the settings as a Markdown page. A table has one row for each setting, in the order of `--help`.
#[must_use]
pub fn settings_page() -> String {
    table::page(&Settings::augment_args(clap::Command::new("serve")))
}

/// Adds the variables to those arguments of a command that are settings. A variable's value replaces the default, and
/// the help names the variable.
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

impl Settings {
    /// Returns the limit on environments.
    #[must_use]
    pub fn environments(&self) -> SharedLimit {
        let per_caller = self.access.max_environments_per_principal;
        SharedLimit { all: access::size(self.max_environments), per_caller: per_caller.map(access::size) }
    }

    /// Checks the settings that depend on each other.
    ///
    /// # Errors
    /// A message that names the settings.
    pub fn check(&self) -> Result<(), String> {
        if self.default_exec_timeout > self.max_exec_timeout {
            let (default, max) = (duration::format(self.default_exec_timeout), duration::format(self.max_exec_timeout));
            return Err(format!("--default-exec-timeout ({default}) must not exceed --max-exec-timeout ({max})"));
        }
        if self.egress_proxy.is_some() && self.egress_proxy_file.is_some() {
            return Err("--egress-proxy (WAGGLE_EGRESS_PROXY) and --egress-proxy-file (WAGGLE_EGRESS_PROXY_FILE) are \
                        both set; set only one of them"
                .to_owned());
        }
        self.check_sizes()?;
        self.access.check(self.listen_addr)
    }

    fn check_sizes(&self) -> Result<(), String> {
        let SizeLimits { default, max } = self.sizes();
        for (name, default, max) in [
            ("cpus", default.cpus, max.cpus),
            ("memory-mb", default.memory_mib, max.memory_mib),
            ("disk-mb", default.disk_mib, max.disk_mib),
        ] {
            if default > max {
                return Err(format!("--default-{name} ({default}) must not exceed --max-{name} ({max})"));
            }
        }
        Ok(())
    }

    /// Returns the default size of a machine, and the largest that a client can choose.
    #[must_use]
    pub fn sizes(&self) -> SizeLimits {
        let default =
            MachineSize { cpus: self.default_cpus, memory_mib: self.default_memory_mb, disk_mib: self.default_disk_mb };
        let max = MachineSize {
            cpus: self.max_cpus.unwrap_or(default.cpus),
            memory_mib: self.max_memory_mb.unwrap_or(default.memory_mib),
            disk_mib: self.max_disk_mb.unwrap_or(default.disk_mib),
        };
        SizeLimits { default, max }
    }

    /// Returns the images that clients may choose. Clients without tokens have the rights of a user of this host.
    #[must_use]
    pub fn allowed_images(&self) -> AllowedImages {
        let has_tokens = self.access.auth_tokens_file.is_some();
        let by_default = || if has_tokens { AllowedImages::none() } else { AllowedImages::any() };
        self.allowed_images.clone().unwrap_or_else(by_default)
    }

    /// Returns the guests' proxy, from the flag, the variable or the file.
    ///
    /// # Errors
    /// [`ProxyFileFault`] if the file cannot be used.
    pub fn proxy(&self) -> Result<Option<Proxy>, ProxyFileFault> {
        match &self.egress_proxy_file {
            Some(path) => proxy_file::read(path).map(Some),
            None => Ok(self.egress_proxy.clone()),
        }
    }

    /// Returns the rates of the connections and lookups of each environment.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates { flows: self.egress_flows_per_second, lookups: self.egress_lookups_per_second }
    }

    /// Returns the folders in the settings, or the defaults of the XDG base directory specification.
    ///
    /// # Errors
    /// [`FoldersFault`].
    pub fn folders(&self, variable: Lookup<'_>) -> Result<Folders, FoldersFault> {
        let data = self.data_dir.clone();
        let data = data.or_else(|| xdg(variable, "XDG_DATA_HOME", ".local/share").map(|base| base.join("waggle")));
        let data = data.ok_or(FoldersFault::Unset { setting: "DATA_DIR" })?;
        Ok(Folders {
            data: absolute("DATA_DIR", data)?,
            images: self.image_store.folder(variable)?,
            kernel: self.kernel.clone().map(|kernel| absolute("KERNEL", kernel)).transpose()?,
        })
    }

    /// Returns the limits of one call.
    #[must_use]
    pub fn command_limits(&self) -> CommandLimits {
        CommandLimits {
            memory_bytes: self.exec_memory_mb.map(|mib| u64::from(mib) * 1024 * 1024),
            pids: Some(self.exec_pids),
            open_files: Some(self.exec_open_files),
        }
    }

    /// Returns the operator's commands for running code and installing packages.
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

/// Chooses the image of each runtime: the image in the settings, else the project's own image if `has_layout` returns
/// true for its folder, else the official image.
///
/// # Errors
/// [`ImageDefaultFault`] if the path of the project's own image is not valid in a reference.
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

/// The default image has an invalid reference.
#[derive(Debug, thiserror::Error)]
#[error("failed to use {reference} as an image; set WAGGLE_IMAGE_PYTHON, WAGGLE_IMAGE_NODE and WAGGLE_IMAGE_SHELL")]
pub struct ImageDefaultFault {
    reference: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Maximum memory and disk of a machine in MiB: a TiB, so that sums of bytes stay far below their limits.
const MIB_MAX: u32 = 1_048_576;

/// Returns the parser of a number of MiB.
fn mib(min: u32) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(min)..=i64::from(MIB_MAX))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let fault = || "must be HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or localhost:8080".to_owned();
    let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    match text.strip_prefix(':') {
        Some(port) => port.parse().map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map_err(|_| fault()),
        None => text.parse().map_err(|_| fault()),
    }
}

#[cfg(test)]
mod tests;
