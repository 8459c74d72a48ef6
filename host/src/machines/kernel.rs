// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The kernel of QEMU's guests: the one in libkrunfw, or a file of the operator's.
//!
//! A child process reads the kernel from the library, because a truncated library crashes the process that loads it.
//! The server publishes the output of the child as a file, and keeps the file like unpacked firmware.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::task::{JoinError, spawn_blocking};
use waggle_shared::causes::chain;

use super::{
    krun::{self, Firmware, FirmwareFault},
    made_file::{Content, Family, MadeFile, MakeFault, Measure},
    pvh, roles,
    settings::VmSettings,
};

/// Beginning of the name of the file that is made from a library.
const NAME: &str = "vmlinux";
/// Maximum size of the file that is made from a library, in bytes. libkrunfw's is 21 MB.
const BYTES_MAX: u64 = 256 << 20;
/// Timeout of the child process. It takes 0.1 s, but a hundred times that on an emulated and busy host.
const READ_MAX: Duration = Duration::from_secs(60);

/// The kernel of QEMU's guests.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) path: PathBuf,
    /// Set if the file is made from the firmware.
    made: Option<(Firmware, Arc<MadeFile>)>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelFault {
    #[error("failed to find libkrunfw, which contains the guests' kernel (WAGGLE_KERNEL sets another kernel)")]
    Firmware { source: FirmwareFault },
    #[error(
        "the kernel of {} does not work with QEMU: {reason}. Use the library that `./taskw firmware` fetches, or set \
         WAGGLE_KERNEL to another kernel",
        firmware.display()
    )]
    Unusable { firmware: PathBuf, reason: String },
    #[error("failed to make the kernel of QEMU's guests from {}", firmware.display())]
    Make { firmware: PathBuf, source: Box<MakeFault> },
    #[error("failed to open the kernel {}, which WAGGLE_KERNEL names; {RIGHT}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("WAGGLE_KERNEL names the folder {}; {RIGHT}", path.display())]
    Folder { path: PathBuf },
    #[error("WAGGLE_KERNEL names a file that QEMU cannot boot, {}: {reason}; {RIGHT}", path.display())]
    Invalid { path: PathBuf, reason: String },
    /// The child process that reads the library could not be run, or was too slow.
    #[error("failed to read the kernel of {}", firmware.display())]
    Run { firmware: PathBuf, source: io::Error },
    /// A task that reads the kernel panicked.
    #[error("failed to read the guests' kernel")]
    Task { source: JoinError },
}

/// The part of an error that describes a valid WAGGLE_KERNEL.
const RIGHT: &str = "it must name a vmlinux: an ELF file for x86-64 with a PVH entry (CONFIG_PVH) and with all drivers \
                     built in. Without WAGGLE_KERNEL, the kernel in libkrunfw is used";

impl Kernel {
    /// Checks the operator's kernel, or makes the kernel from libkrunfw.
    ///
    /// # Errors
    /// [`KernelFault`]; its text says what would be right.
    pub(super) async fn find(settings: &VmSettings) -> Result<Self, KernelFault> {
        if let Some(path) = settings.kernel.clone() {
            let opened = spawn_blocking(move || Self::open(path)).await;
            return opened.map_err(|source| KernelFault::Task { source })?;
        }
        let (folder, runner) = (settings.firmware_dir(), settings.runner.clone());
        let firmware = Firmware::find(settings.firmware.as_deref(), &folder, &runner).await;
        let firmware = firmware.map_err(|source| KernelFault::Firmware { source })?;
        let made = spawn_blocking(move || Self::make(firmware, runner, &folder)).await;
        made.map_err(|source| KernelFault::Task { source })?
    }

    fn open(path: PathBuf) -> Result<Self, KernelFault> {
        if path.is_dir() {
            return Err(KernelFault::Folder { path });
        }
        // The confined root of QEMU contains the file itself, and not the links that lead to it.
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(source) => return Err(KernelFault::Open { path, source }),
        };
        if !path.is_file() {
            return Err(KernelFault::Invalid { path, reason: "not a file".to_owned() });
        }
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(KernelFault::Open { path, source }),
        };
        match pvh::check(&mut file) {
            Ok(()) => Ok(Self { path, made: None }),
            Err(fault) => Err(KernelFault::Invalid { path, reason: chain(&fault) }),
        }
    }

    fn make(firmware: Firmware, runner: OsString, folder: &Path) -> Result<Self, KernelFault> {
        let content = FromFirmware { runner, firmware: firmware.path.clone() };
        let measure = match Measure::of(&content, BYTES_MAX) {
            Ok(measure) => measure,
            // The child has said why it cannot use the library.
            Err(fault) if fault.kind() == io::ErrorKind::Other => {
                return Err(KernelFault::Unusable { firmware: firmware.path, reason: fault.to_string() });
            }
            Err(source) => return Err(KernelFault::Run { firmware: firmware.path, source }),
        };
        match MadeFile::new(Family(NAME), NAME, Box::new(content), measure, folder) {
            Ok(made) => Ok(Self { path: made.path().to_owned(), made: Some((firmware, Arc::new(made))) }),
            Err(source) => Err(KernelFault::Make { firmware: firmware.path, source: source.into() }),
        }
    }

    /// Verifies a file that was made from the firmware again, and replaces a changed file. Must be called before each
    /// start of a machine.
    ///
    /// # Errors
    /// The changed file cannot be replaced.
    pub(super) async fn ensure(&self) -> Result<(), KernelFault> {
        let Some((firmware, made)) = self.made.clone() else { return Ok(()) };
        firmware.ensure().await.map_err(|source| KernelFault::Firmware { source })?;
        let ensured = spawn_blocking(move || made.ensure()).await;
        let ensured = ensured.map_err(|source| KernelFault::Task { source })?;
        ensured.map_err(|source| KernelFault::Make { firmware: firmware.path, source: source.into() })
    }
}

/// Writes the kernel of the library at `firmware` to stdout, as an ELF file with a PVH entry. Only for a child process.
///
/// # Errors
/// The library cannot be used, or its kernel does not work with QEMU.
pub(super) fn write_from(firmware: &Path) -> io::Result<()> {
    let kernel = krun::load_firmware(firmware)?;
    // `io::stdout` would look for the last line break of each write.
    let mut out = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
    pvh::write(kernel.image, kernel.address, &mut out)
}

/// The kernel that a child process reads from a library.
#[derive(Debug)]
struct FromFirmware {
    runner: OsString,
    firmware: PathBuf,
}

impl Content for FromFirmware {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Output::start(&self.runner, &self.firmware)?))
    }

    fn damage(&self) -> String {
        format!("{} has been replaced since the server started; restart the server", self.firmware.display())
    }
}

/// The output of the child process. The last read fails if the child failed.
struct Output {
    child: Child,
    stdout: ChildStdout,
    deadline: Instant,
}

impl Output {
    fn start(runner: &OsStr, firmware: &Path) -> io::Result<Self> {
        let mut command = roles::blocking_command(runner, roles::KERNEL);
        command.arg(firmware).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, stdout, deadline: Instant::now() + READ_MAX })
    }

    /// Waits for the child's end, and returns the reason if the child failed.
    fn end(&mut self) -> io::Result<()> {
        let mut text = String::new();
        let limit = roles::REASON_CHARS_MAX as u64;
        if let Some(stderr) = self.child.stderr.take() {
            stderr.take(limit).read_to_string(&mut text)?;
        }
        match (self.child.wait()?.success(), text.trim()) {
            (true, _) => Ok(()),
            (false, "") => Err(io::Error::other(krun::DIED)),
            (false, reason) => Err(io::Error::other(reason.to_owned())),
        }
    }
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&self.stdout, PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out reading the library"));
        }
        let length = self.stdout.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            self.end()?;
        }
        Ok(length)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Both fail only if the child has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn kernel_that_qemu_cannot_boot_is_an_error_that_says_what_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinuz");
        let mut bzimage = vec![0; 4096];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        for (content, reason) in [(bzimage.as_slice(), "is a bzImage"), (b"#!/bin/sh\n", "not an ELF file")] {
            fs::write(&path, content).unwrap();
            let fault = Kernel::open(path.clone()).unwrap_err().to_string();
            assert!(fault.contains(reason) && fault.contains("must name a vmlinux"), "{fault}");
            assert!(fault.contains(path.to_str().unwrap()), "{fault}");
        }
        let fault = Kernel::open(folder.path().to_owned()).unwrap_err().to_string();
        assert!(fault.contains("names the folder") && fault.contains("must name a vmlinux"), "{fault}");
        let fault = Kernel::open(folder.path().join("none")).unwrap_err().to_string();
        assert!(fault.contains("none, which WAGGLE_KERNEL names"), "{fault}");
    }
}
