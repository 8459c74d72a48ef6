// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Creates scratch disks, the writable disks of machines.
//!
//! Each disk is a copy of a template: an empty ext4 file system that `mkfs.ext4` creates once for each size. Only
//! blocks with data are copied, or shared if the host's file system supports sharing. The rest of the disk is a hole,
//! which occupies no space until the guest writes.
//!
//! The disk is deleted with its machine, so it needs no journal for safety. It has a small one for speed: without a
//! journal, ext4 avoids the inodes of recently deleted files, and creating files is several times slower for minutes
//! after many were deleted.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    ops::RangeInclusive,
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
use rustix::fs::ioctl_ficlone;
use tokio::{
    process::Command,
    sync::Mutex,
    task::{JoinError, spawn_blocking},
    time::timeout,
};
use waggle_shared::draft::{Draft, DraftFault, DraftFolder};

/// Timeout of `mkfs.ext4`, which usually takes about 20 ms. If it takes a minute, the host's disk hangs.
const MKFS_TIMEOUT: Duration = Duration::from_secs(60);

/// Paths of `mkfs.ext4`. Ordinary users often have no `sbin` folders in `PATH`.
const MKFS_PROGRAMS: [&str; 3] = ["mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];

/// The complete list of features, so the host's `mke2fs.conf` cannot add features that the guest's kernel lacks. The
/// list omits the space reserved for resizing.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,metadata_csum";

/// With these options, `mkfs.ext4` leaves the inode tables and the journal as holes in the file, which read as zeros.
/// The agent's mount option `noinit_itable` prevents the guest's kernel from writing the tables later.
const EXTENDED_OPTIONS: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";

/// Size of a block in bytes, and the disk's bytes for each inode. A file that is not empty occupies at least one block,
/// so the inodes suffice for as many small files as the disk can hold. They occupy a sixteenth of the disk.
const BLOCK_BYTES: &str = "4096";

/// Minimum and maximum size of the journal in MiB. The minimum is that of ext4; more than the maximum is not faster.
const JOURNAL_MIB: RangeInclusive<u32> = 4..=16;

/// The disk's size for each MiB of the journal.
const DISK_PER_JOURNAL: u32 = 64;

/// The folder of templates. The version in its name must change whenever the options above change.
const TEMPLATE_FOLDER: &str = "scratch-v2";

/// Maximum number of templates that are kept. One is made again within a fraction of a second.
const TEMPLATES_MAX: usize = 16;

const COPY_BUFFER_BYTES: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    #[error("failed to use the folder of disk templates")]
    Templates {
        #[from]
        source: DraftFault,
    },
    #[error(
        "mkfs.ext4, which creates the machines' disks, was not found; install the package e2fsprogs (with apt-get \
         install, dnf install or pacman -S)"
    )]
    MkfsMissing,
    #[error("failed to run {program}")]
    MkfsSpawn { program: &'static str, source: io::Error },
    /// `mkfs.ext4` exited with an error.
    #[error("mkfs.ext4 failed to create a file system of {size_mib} MiB: {message}")]
    Mkfs {
        size_mib: u32,
        /// The error output of `mkfs.ext4`, shortened and joined to one line.
        message: String,
    },
    #[error("mkfs.ext4 did not finish within {} s", MKFS_TIMEOUT.as_secs())]
    MkfsTimeout,
    #[error("failed to write the disk {path}")]
    Copy { path: String, source: io::Error },
    /// The task panicked, or the server is shutting down.
    #[error("the task that creates the disk {path} ended without a result")]
    Lost { path: String, source: JoinError },
}

#[derive(Debug)]
pub struct Disks {
    templates: Arc<DraftFolder>,
    /// Locked while a template is created, so each template is created only once.
    creating: Mutex<()>,
}

impl Disks {
    /// Opens the folder of templates in `data_dir`, and creates the folder if it is missing.
    ///
    /// # Errors
    /// The folder cannot be created or is not writable.
    pub fn open(data_dir: impl AsRef<Path>) -> Result<Self, DiskFault> {
        let templates = DraftFolder::open(data_dir.as_ref().join(TEMPLATE_FOLDER))?;
        Ok(Self { templates: Arc::new(templates), creating: Mutex::default() })
    }

    /// Creates an empty ext4 file system of `size_mib` MiB in the new file `path`. The root folder of the file system
    /// belongs to root and has mode 0755.
    ///
    /// # Errors
    /// `mkfs.ext4` is missing or rejects the size, `path` exists, or the disk is full. If the copy fails, the new
    /// file at `path` is removed.
    pub async fn scratch(&self, path: &Path, size_mib: u32) -> Result<(), DiskFault> {
        copy_in_task(self.template(size_mib).await?, path).await
    }

    /// Copies the disk of a snapshot to the new file `path`.
    ///
    /// # Errors
    /// As for [`Self::scratch`].
    pub(super) async fn copy_of(snapshot: &Path, path: &Path) -> Result<(), DiskFault> {
        copy_in_task(snapshot.to_owned(), path).await
    }

    async fn template(&self, size_mib: u32) -> Result<PathBuf, DiskFault> {
        let path = self.templates.path().join(format!("{size_mib}-mib.ext4"));
        let _creating = self.creating.lock().await;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let lost = |source| DiskFault::Lost { path: path.display().to_string(), source };
        // These steps need a blocking thread: they wait for file locks and sync the disk.
        let templates = Arc::clone(&self.templates);
        let draft = spawn_blocking(move || start_template(&templates, size_mib)).await.map_err(lost)??;
        make_file_system(draft.path(), size_mib).await?;
        let published = spawn_blocking({
            let path = path.clone();
            move || draft.publish(&path)
        });
        published.await.map_err(lost)??;
        let (templates, own) = (self.templates.path().to_owned(), path.clone());
        spawn_blocking(move || remove_surplus(&templates, &own)).await.map_err(lost)?;
        Ok(path)
    }
}

/// Removes the oldest templates beyond [`TEMPLATES_MAX`], except `own`. Clients choose the size of their disks.
fn remove_surplus(folder: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let templates = paths.filter(|path| path != own && path.extension().is_some_and(|extension| extension == "ext4"));
    let mut templates: Vec<_> =
        templates.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect();
    templates.sort();
    let surplus = (templates.len() + 1).saturating_sub(TEMPLATES_MAX);
    for (_, path) in templates.into_iter().take(surplus) {
        // A template that another server is copying stays open there.
        let _ = fs::remove_file(path);
    }
}

async fn copy_in_task(from: PathBuf, path: &Path) -> Result<(), DiskFault> {
    let copied = spawn_blocking({
        let path = path.to_owned();
        move || copy(&from, &path)
    });
    let shown = || path.display().to_string();
    match copied.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(DiskFault::Copy { path: shown(), source }),
        Err(source) => Err(DiskFault::Lost { path: shown(), source }),
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
    let journal_mib = (size_mib / DISK_PER_JOURNAL).clamp(*JOURNAL_MIB.start(), *JOURNAL_MIB.end());
    let journal = format!("size={journal_mib}");
    let options = [
        ["-b", BLOCK_BYTES],
        ["-i", BLOCK_BYTES],
        ["-J", &journal],
        // No blocks are reserved for root.
        ["-m", "0"],
        ["-O", FEATURES],
        ["-E", EXTENDED_OPTIONS],
    ];
    let options = ["-q", "-F"].iter().chain(options.as_flattened()).map(OsStr::new);
    let output = mkfs(options.chain([path.as_os_str()]).collect()).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(DiskFault::Mkfs { size_mib, message: one_line(&output.stderr) })
}

/// Returns the version of the `mkfs.ext4` that creates scratch disks.
///
/// # Errors
/// `mkfs.ext4` is missing or does not run.
pub async fn mkfs_version() -> Result<String, DiskFault> {
    let output = mkfs(vec![OsStr::new("-V")]).await?;
    // `mkfs.ext4` prints its version to stderr.
    Ok(one_line(&output.stderr))
}

async fn mkfs(arguments: Vec<&OsStr>) -> Result<Output, DiskFault> {
    for program in MKFS_PROGRAMS {
        let mut command = Command::new(program);
        let output = command.args(&arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        match timeout(MKFS_TIMEOUT, output).await {
            Err(_) => return Err(DiskFault::MkfsTimeout),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(Err(source)) => return Err(DiskFault::MkfsSpawn { program, source }),
            Ok(Ok(output)) => return Ok(output),
        }
    }
    Err(DiskFault::MkfsMissing)
}

/// Maximum length of the output of `mkfs.ext4` in an error or a version, in characters.
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
        // An error of the removal is ignored, because the error of the copy explains more.
        let _ = fs::remove_file(path);
    }
    copied
}

/// Copies only the data, so holes stay holes. File systems that can share all blocks of a file do so at once.
pub(super) fn copy_data(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let bytes = i64::try_from(from.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    to.set_len(bytes.unsigned_abs())?;
    let mut offset = 0;
    while offset < bytes {
        let start = match lseek(from, offset, Whence::SeekData) {
            Ok(start) => start,
            // The rest of the file is a hole.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(from, start, Whence::SeekHole)?;
        copy_segment(from, to, start, end)?;
        offset = end;
    }
    Ok(())
}

/// Copies inside the kernel. File systems that can share blocks between files (XFS, btrfs) share them instead.
fn copy_segment(from: &File, to: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut from_offset, mut to_offset) = (start, start);
    while from_offset < end {
        let bytes = usize::try_from(end - from_offset).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            // The files are on two file systems, or the file system does not support the call.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                return copy_in_pieces(from, to, from_offset.unsigned_abs(), end.unsigned_abs());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_in_pieces(from: &File, to: &File, mut offset: u64, end: u64) -> io::Result<()> {
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

    /// Runs a tool of e2fsprogs and returns its output.
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
    async fn scratch_disk_is_sparse_passes_fsck_and_has_a_journal_and_many_inodes() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        disks.scratch(&path, 4096).await.unwrap();
        let template = folder.path().join(TEMPLATE_FOLDER).join("4096-mib.ext4");
        for metadata in [&path, &template].map(|path| path.metadata().unwrap()) {
            assert_eq!(metadata.len(), 4096 * 1024 * 1024);
            assert!(metadata.blocks() * 512 < 4 * 1024 * 1024, "{} bytes are in use", metadata.blocks() * 512);
        }
        run("/usr/sbin/e2fsck", &["-fn"], &path);
        let about = run("/usr/sbin/dumpe2fs", &["-h"], &path);
        assert!(about.contains("has_journal"), "{about}");
        let inodes = about.lines().find_map(|line| line.strip_prefix("Inode count:")).map(str::trim);
        assert_eq!(inodes, Some("1048576"), "{about}");
        assert!(about.contains("metadata_csum"), "{about}");
        let root = run("/usr/sbin/debugfs", &["-R", "stat /"], &path);
        assert!(root.contains("Type: directory    Mode:  0755"), "{root}");
        assert!(root.contains("User:     0   Group:     0"), "{root}");
    }

    #[tokio::test]
    async fn each_size_has_one_template() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        // Also the smallest size that the configuration allows.
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
    async fn largest_disk_of_the_configuration_occupies_little_space() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        disks.scratch(&path, 1024 * 1024).await.unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), 1024 * 1024 * 1024 * 1024);
        assert!(metadata.blocks() * 512 < 32 * 1024 * 1024, "{} bytes are in use", metadata.blocks() * 512);
    }

    #[tokio::test]
    async fn existing_file_is_kept_and_is_an_error() {
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
    async fn invalid_size_is_an_error_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path()).unwrap();
        let path = folder.path().join("disk");
        let fault = disks.scratch(&path, 0).await.unwrap_err();
        assert!(matches!(fault, DiskFault::Mkfs { size_mib: 0, .. }), "{fault}");
        assert!(!path.exists());
    }

    #[test]
    fn copying_in_pieces_yields_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let content: Vec<u8> = (0..=255).cycle().take(3 * COPY_BUFFER_BYTES + 17).collect();
        fs::write(&from, &content).unwrap();
        let (source, target) = (File::open(&from).unwrap(), File::create(&to).unwrap());
        target.set_len(content.len() as u64).unwrap();
        copy_in_pieces(&source, &target, 0, content.len() as u64).unwrap();
        assert_eq!(fs::read(&to).unwrap(), content);
    }
}
