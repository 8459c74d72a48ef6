// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What the services ask of the outside: machines that start, and calls into a machine that runs.
//!
//! This is the only async in the domain. `machines` has the adapters; the behaviour tests bring one more, the real
//! agent in-process.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{egress::Network, environment::EnvironmentId, guest_path::GuestPath, image::ImageRef};

/// A boxed future, so that the ports can be trait objects.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts machines: libkrun, QEMU, and in the behaviour tests the agent on an in-memory pipe.
pub trait Machines: Send + Sync {
    /// Starts one machine and resolves when its agent serves calls.
    ///
    /// `stages` hears each stage as it begins. When `cancelled` resolves, the start is given up: the future then
    /// resolves with a fault, once nothing of the machine is left, or with a machine that was ready just before, which
    /// is to be stopped. Dropping the future ends whatever was started too, but nobody hears when that is done.
    ///
    /// # Errors
    /// [`StartFault`] names the stage that failed; everything that was taken for the machine has been released by then.
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>>;
}

/// One running machine.
pub trait Machine: Send + Sync {
    /// What the agent found in the guest when it started.
    fn capabilities(&self) -> &Capabilities;

    /// Runs a command to its end, its deadline or its cancellation; `on_output` gets the output as it arrives.
    fn exec<'a>(
        &'a self,
        command: Command,
        cancelled: PortFuture<'a, ()>,
        on_output: &'a mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> PortFuture<'a, Result<Ended, CallFault>>;

    /// Writes a file, making its parents; returns the bytes written.
    fn write_file<'a>(
        &'a self,
        path: &'a GuestPath,
        content: &'a [u8],
        how: Writing,
    ) -> PortFuture<'a, Result<u64, CallFault>>;

    /// Reads a file, or the part of it that `range` names; of either at most `bytes_max`.
    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>>;

    /// Lists at most `entries_max` of a folder's entries, sorted by name.
    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        entries_max: u32,
        recursive: bool,
    ) -> PortFuture<'a, Result<Listing, CallFault>>;

    /// The last lines that the machine printed on its console, also when it is gone; bounded in number and length, and
    /// safe to show: control characters are escaped.
    fn console(&self) -> Vec<String>;

    /// Resolves when the machine is gone without having been told to stop; says why.
    fn gone(&self) -> PortFuture<'_, String>;

    /// Ends the machine and releases everything that it held. Idempotent; bounded by the adapter's own grace period.
    fn stop(&self) -> PortFuture<'_, ()>;
}

/// What one machine is made of.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The environment that it is for; names its files and its log lines.
    pub id: EnvironmentId,
    /// The root file system.
    pub image: ImageRef,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the scratch disk in MiB; it is sparse.
    pub disk_mib: u32,
    /// From the start of the virtual machine to the agent's hello.
    pub boot_timeout: Duration,
    /// Its network; none if it can reach nothing.
    pub network: Option<Network>,
}

/// The stages of a start, in their order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// The image is looked up.
    Image,
    /// What is missing of the image comes from its registry.
    Pull(Amount),
    /// The image's layers are merged, since that has not been done.
    Merge(Amount),
    /// The scratch disk and the initial root are made.
    Disks,
    /// The virtual machine boots.
    Boot,
}

/// How much of something is done, in bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Amount {
    /// What is done.
    pub done: u64,
    /// All that there is to do.
    pub total: u64,
}

impl Amount {
    /// What is done of all, from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        let thousandths = u128::from(self.done) * 1000 / u128::from(self.total.max(1));
        f64::from(u16::try_from(thousandths).unwrap_or(1000).min(1000)) / 1000.0
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: u64 = 1_000_000;
        let tenths = |bytes: u64| (bytes / MB, bytes % MB / (MB / 10));
        let ((done, done_tenths), (total, total_tenths)) = (tenths(self.done), tenths(self.total));
        write!(f, "{done}.{done_tenths} of {total}.{total_tenths} MB")
    }
}

impl Stage {
    /// What a person reads while the stage runs.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Image => "preparing the image",
            Self::Pull(_) => "pulling the image",
            Self::Merge(_) => "merging the image's layers",
            Self::Disks => "making the disks",
            Self::Boot => "booting the machine",
        }
    }

    /// How far it is, if that can be said.
    #[must_use]
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Pull(amount) | Self::Merge(amount) => Some(amount),
            Self::Image | Self::Disks | Self::Boot => None,
        }
    }
}

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
#[error("failed while {}", stage.describe())]
pub struct StartFault {
    /// The stage that failed.
    pub stage: Stage,
    /// The last that the machine printed, if it came so far; as [`Machine::console`] has it.
    pub console: Vec<String>,
    /// The cause, with operands.
    pub source: Box<dyn Error + Send + Sync>,
}

/// What the agent found in the guest.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// Whether the agent came with the image or from the host.
    pub agent_origin: AgentOrigin,
    /// The agent's version and build, as it says so itself. Checked for length and printable characters.
    pub agent_build: String,
    /// Programs by name, of those that waggle asks for (interpreters and package managers).
    pub programs: Vec<String>,
}

impl Capabilities {
    /// Whether the guest has the program on its search path.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.programs.iter().any(|found| found == program)
    }
}

/// Where the serving agent was taken from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AgentOrigin {
    /// The copy that the host put into the initial root.
    #[default]
    Host,
    /// The image's own.
    Image,
}

/// What to run in the guest. No shell is involved: `argv` is executed as it is.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program (absolute, or looked up in the guest's search path) and arguments.
    pub argv: Vec<String>,
    /// Written to a temporary file whose path becomes the last argument.
    pub script: Option<Script>,
    /// What it reads from its standard input.
    pub stdin: Vec<u8>,
    /// Added to the environment that the agent gives every command.
    pub env: Vec<(String, String)>,
    /// Where it starts; if there is none, where the image says, else in the home.
    pub working_directory: Option<GuestPath>,
    /// Who runs it.
    pub user: User,
    /// The agent kills everything that the call started when this has passed.
    pub timeout: Duration,
    /// What it may use.
    pub limits: CommandLimits,
    /// An output longer than this, in bytes, is kept in a file in the guest.
    pub keep_output_above_bytes: u64,
}

/// What a command and all that it starts may use. The machine's own limits hold besides.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CommandLimits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Open files of one process.
    pub open_files: Option<u32>,
}

/// Code to run from a temporary file.
#[derive(Clone, Debug)]
pub struct Script {
    /// Without the dot: `py`, `js`, `sh`.
    pub extension: &'static str,
    /// The file's content.
    pub code: Vec<u8>,
}

/// Who runs a command in the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum User {
    /// `sandbox`, 1000:1000.
    Sandbox,
    /// The guest's root, for package managers that need it.
    Root,
}

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it ended.
    pub cause: EndCause,
    /// From spawn to exit, as the agent measured it.
    pub duration: Duration,
    /// Where its standard output can be read on, if it was long.
    pub stdout_file: Option<OutputFile>,
    /// Where its standard error can be read on, if it was long.
    pub stderr_file: Option<OutputFile>,
}

/// A long output that the agent kept in a file in the guest. The files of later commands take its place in time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutputFile {
    /// Its path in the guest.
    pub path: GuestPath,
    /// How much of the output it holds, from the start, in bytes.
    pub bytes: u64,
    /// Whether that is all of it.
    pub complete: bool,
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndCause {
    /// By itself.
    Exited,
    /// Its deadline passed and the agent killed it.
    TimedOut,
    /// The caller cancelled it and the agent killed it.
    Cancelled,
    /// It needed more memory than it may have, and the guest's kernel killed it.
    OutOfMemory,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Writing {
    /// Its permissions; by default an existing file keeps its own and a new one gets 0644.
    pub mode: Option<u32>,
    /// Whether the content goes behind what the file has; by default it replaces that, at once.
    pub append: bool,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileRange {
    /// Its first byte.
    pub offset: u64,
    /// Its length at the most, in bytes.
    pub limit: u64,
}

/// What was read of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileContent {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The whole file's size, in bytes; 0 for files that the guest's kernel makes up.
    pub file_size: u64,
}

/// The most bytes that the names of one listing take together.
pub const LISTING_NAMES_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A folder's entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// Sorted by name.
    pub entries: Vec<Entry>,
    /// True if the folder holds more than was asked for.
    pub truncated: bool,
}

/// One entry of a folder; a symbolic link is told as itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its name, or in a recursive listing its path below the folder; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The name's bytes, if they are not UTF-8.
    pub raw_name: Option<Vec<u8>>,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub modified_unix_s: i64,
}

/// A call into a machine did not work.
#[derive(Debug, thiserror::Error)]
pub enum CallFault {
    /// The guest refused, for a reason that the caller can mend.
    #[error("{message}")]
    Refused {
        /// What kind of reason.
        kind: RefusalKind,
        /// The agent's sentence, checked for length and control characters.
        message: String,
    },
    /// The machine is gone, or its link is.
    #[error("the machine is gone: {reason}")]
    Gone {
        /// What was noticed.
        reason: String,
    },
    /// The agent broke the protocol.
    #[error("failed to understand the guest agent")]
    Protocol {
        /// What was wrong.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Why the guest refused a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalKind {
    /// No such file, folder or program.
    NotFound,
    /// A folder where a file is needed.
    IsDirectory,
    /// A file where a folder is needed.
    NotDirectory,
    /// Not a regular file: a device, a socket, a pipe.
    NotRegular,
    /// The sandbox user may not.
    Denied,
    /// Above the limit of this call.
    TooLarge,
    /// The guest's disk is full, or its quota.
    NoSpace,
    /// A read-only place.
    ReadOnly,
    /// The path cannot name anything.
    InvalidPath,
    /// Too many calls at once.
    Busy,
    /// Anything else that the guest's kernel said.
    Other,
}
