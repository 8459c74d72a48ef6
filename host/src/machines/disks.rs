// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Scratch disks: what a machine writes goes there.
//!
//! Each is a copy of an empty ext4 file system that `mkfs.ext4` made once for its size. Only the blocks that hold
//! something are copied, and where the file system can, they are shared; the rest is a hole that takes no room until
//! the guest writes. There is no journal: the disk lives no longer than its machine.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::copy_file_range,
    unistd::{Whence, lseek},
};
use tokio::{
    process::Command,
    sync::Mutex,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use crate::files::draft::{Draft, DraftFault, DraftFolder};

/// `mkfs.ext4` takes some 20 ms; a minute means that the disk hangs.
const MKFS_TIMEOUT: Duration = Duration::from_secs(60);

/// Where `mkfs.ext4` is: ordinary users often lack the `sbin` folders on their search path.
const MKFS_PROGRAMS: [&str; 3] = ["mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];

/// Named one by one, so that the host's `mke2fs.conf` has no say in what the guest's kernel must understand. No
/// journal, and no room reserved for growing.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";

/// The inode tables are zeroed here, where that makes holes, instead of by the guest's kernel in the background after
/// the first mount, which would fill the sparse file with zeros.
const EXTENDED_OPTIONS: &str = "lazy_itable_init=0,nodiscard,root_owner=0:0";

/// Changes with the options above.
const TEMPLATE_FOLDER: &str = "scratch-v1";

const COPY_BUFFER_BYTES: usize = 1024 * 1024;

/// A scratch disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// The folder of templates.
    #[error("failed to use the folder of disk templates")]
    Templates {
        /// Why.
        #[from]
        source: DraftFault,
    },
    /// There is no `mkfs.ext4`.
    #[error(
        "found no mkfs.ext4, which makes the machines' disks; it is in the package e2fsprogs (apt-get, dnf install or \
         pacman -S e2fsprogs)"
    )]
    MkfsMissing,
    /// `mkfs.ext4` could not be started.
    #[error("failed to run {program}")]
    MkfsSpawn {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// `mkfs.ext4` refused.
    #[error("mkfs.ext4 failed to make a file system of {size_mib} MiB: {message}")]
    Mkfs {
        /// The size asked for.
        size_mib: u32,
        /// What it wrote, cut to what fits on a line.
        message: String,
    },
    /// `mkfs.ext4` hangs.
    #[error("mkfs.ext4 did not make a file system of {size_mib} MiB within {} s", MKFS_TIMEOUT.as_secs())]
    MkfsTimeout {
        /// The size asked for.
        size_mib: u32,
    },
    /// The copy failed.
    #[error("failed to copy the disk template to {path}")]
    Copy {
        /// Where to.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The work ended without a result: it panicked, or the server is shutting down.
    #[error("the making of the disk {path} ended without a result")]
    Lost {
        /// Where to.
        path: String,
        /// How.
        source: JoinError,
    },
}

/// Makes scratch disks.
#[derive(Debug)]
pub struct Disks {
    templates: Arc<DraftFolder>,
    /// Held while a template is made, so that it is made once.
    making: Mutex<()>,
}

impl Disks {
    /// Opens the folder of templates under `data_dir`, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be made or is not writable.
    pub fn open(data_dir: impl AsRef<Path>) -> Result<Self, DiskFault> {
        let templates = DraftFolder::open(data_dir.as_ref().join(TEMPLATE_FOLDER))?;
        Ok(Self { templates: Arc::new(templates), making: Mutex::default() })
    }

    /// Makes an empty ext4 file system of `size_mib` MiB in the new file `path`; its root folder is root's, mode 0755.
    ///
    /// # Errors
    /// If `mkfs.ext4` is missing or refuses the size, `path` exists, or the disk is full. No file is left at `path`
    /// then, except one that was there before.
    pub async fn scratch(&self, path: &Path, size_mib: u32) -> Result<(), DiskFault> {
        let template = self.template(size_mib).await?;
        let copied = spawn_blocking({
            let path = path.to_owned();
            move || copy(&template, &path)
        });
        let shown = || path.display().to_string();
        match copied.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(DiskFault::Copy { path: shown(), source }),
            Err(source) => Err(DiskFault::Lost { path: shown(), source }),
        }
    }

    async fn template(&self, size_mib: u32) -> Result<PathBuf, DiskFault> {
        let path = self.templates.path().join(format!("{size_mib}-mib.ext4"));
        let _making = self.making.lock().await;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let lost = |source| DiskFault::Lost { path: path.display().to_string(), source };
        // Locks are waited for, and syncs take as long as the disk does.
        let templates = Arc::clone(&self.templates);
        let draft = spawn_blocking(move || start_template(&templates, size_mib)).await.map_err(lost)??;
        make_file_system(draft.path(), size_mib).await?;
        let published = spawn_blocking({
            let path = path.clone();
            move || draft.publish(&path)
        });
        published.await.map_err(lost)??;
        Ok(path)
    }
}

fn start_template(templates: &DraftFolder, size_mib: u32) -> Result<Draft, DiskFault> {
    let draft = templates.draft()?;
    let bytes = u64::from(size_mib) * 1024 * 1024;
    match draft.file().set_len(bytes) {
        Ok(()) => Ok(draft),
        Err(source) => Err(DiskFault::Copy { path: draft.path().display().to_string(), source }),
    }
}

async fn make_file_system(path: &Path, size_mib: u32) -> Result<(), DiskFault> {
    let options = ["-q", "-F", "-b", "4096", "-m", "0", "-O", FEATURES, "-E", EXTENDED_OPTIONS].map(OsStr::new);
    let output = mkfs(options.into_iter().chain([path.as_os_str()]).collect(), size_mib).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(DiskFault::Mkfs { size_mib, message: one_line(&output.stderr) })
}

/// What the `mkfs.ext4` that makes scratch disks says of its version.
///
/// # Errors
/// If there is none, or it does not run.
pub async fn mkfs_version() -> Result<String, DiskFault> {
    let output = mkfs(vec![OsStr::new("-V")], 0).await?;
    // It says so on stderr.
    Ok(one_line(&output.stderr))
}

async fn mkfs(arguments: Vec<&OsStr>, size_mib: u32) -> Result<Output, DiskFault> {
    for program in MKFS_PROGRAMS {
        let mut command = Command::new(program);
        let output = command.args(&arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        match timeout(MKFS_TIMEOUT, output).await {
            Err(_) => return Err(DiskFault::MkfsTimeout { size_mib }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(Err(source)) => return Err(DiskFault::MkfsSpawn { program, source }),
            Ok(Ok(output)) => return Ok(output),
        }
    }
    Err(DiskFault::MkfsMissing)
}

/// Characters of what `mkfs.ext4` wrote that an error repeats.
const MESSAGE_CHARS_MAX: usize = 400;

fn one_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MESSAGE_CHARS_MAX).collect()
}

fn copy(template: &Path, path: &Path) -> io::Result<()> {
    let from = File::open(template)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let copied = copy_data(&from, &to);
    if copied.is_err() {
        // The copy's own error says more than one of this removal would.
        let _ = fs::remove_file(path);
    }
    copied
}

/// Copies what is not a hole.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let bytes = i64::try_from(from.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    to.set_len(bytes.unsigned_abs())?;
    let mut offset = 0;
    while offset < bytes {
        let start = match lseek(from, offset, Whence::SeekData) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(from, start, Whence::SeekHole)?;
        copy_segment(from, to, start, end)?;
        offset = end;
    }
    Ok(())
}

/// Lets the kernel copy, which shares the blocks where the file system can (XFS, btrfs).
fn copy_segment(from: &File, to: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut from_offset, mut to_offset) = (start, start);
    while from_offset < end {
        let bytes = usize::try_from(end - from_offset).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            // Two file systems, or one that cannot.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                return copy_by_hand(from, to, from_offset.unsigned_abs(), end.unsigned_abs());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut offset: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    while offset < end {
        let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        from.read_exact_at(part, offset)?;
        to.write_all_at(part, offset)?;
        offset += wanted as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process};

    use super::*;

    /// What a tool of e2fsprogs prints.
    fn run(program: &str, arguments: &[&str], path: &Path) -> String {
        let output = process::Command::new(program)
            .args(arguments)
            .arg(path)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install e2fsprogs"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {text}");
        text
    }

    #[tokio::test]
    async fn a_scratch_disk_is_sparse_clean_and_has_no_journal() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        disks.scratch(&path, 4096).await.unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), 4096 * 1024 * 1024);
        assert!(metadata.blocks() * 512 < 8 * 1024 * 1024, "{} bytes are in use", metadata.blocks() * 512);
        run("/usr/sbin/e2fsck", &["-fn"], &path);
        let about = run("/usr/sbin/dumpe2fs", &["-h"], &path);
        assert!(!about.contains("has_journal"), "{about}");
        assert!(about.contains("metadata_csum"), "{about}");
        let root = run("/usr/sbin/debugfs", &["-R", "stat /"], &path);
        assert!(root.contains("Type: directory    Mode:  0755"), "{root}");
        assert!(root.contains("User:     0   Group:     0"), "{root}");
    }

    #[tokio::test]
    async fn every_size_has_its_own_template_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        for (name, size_mib) in [("a", 64), ("b", 64), ("c", 128)] {
            disks.scratch(&folder.path().join(name), size_mib).await.unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(folder.path().join(TEMPLATE_FOLDER))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [".lock", "128-mib.ext4", "64-mib.ext4"]);
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), fs::read(folder.path().join("b")).unwrap());
    }

    #[tokio::test]
    async fn a_file_in_the_way_stays_and_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, "mine").unwrap();
        let fault = disks.scratch(&path, 64).await.unwrap_err();
        let DiskFault::Copy { source, .. } = fault else { panic!("{fault}") };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_size_that_holds_no_file_system_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        let fault = disks.scratch(&path, 0).await.unwrap_err();
        assert!(matches!(fault, DiskFault::Mkfs { size_mib: 0, .. }), "{fault}");
        assert!(!path.exists());
    }

    #[test]
    fn a_copy_by_hand_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let content: Vec<u8> = (0..=255).cycle().take(3 * COPY_BUFFER_BYTES + 17).collect();
        fs::write(&from, &content).unwrap();
        let (source, target) = (File::open(&from).unwrap(), File::create(&to).unwrap());
        target.set_len(content.len() as u64).unwrap();
        copy_by_hand(&source, &target, 0, content.len() as u64).unwrap();
        assert_eq!(fs::read(&to).unwrap(), content);
    }
}
