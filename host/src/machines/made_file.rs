// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files of known content that the server makes on demand: the embedded libkrunfw, because the system's loader can only
//! load files, and the kernel of QEMU's guests.
//!
//! A file is in a folder that only this user can change. The file's name contains its digest, so versions do not
//! conflict. The server verifies the content against the digest before the first use, and again whenever the metadata
//! has changed. It replaces a changed file and logs a warning.
//!
//! A server holds a shared lock on the file that it uses. The lock protects its machines too, because they end with the
//! server. Old unlocked files of other versions are removed; a server that needs one makes it again.

use std::{
    error::Error,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use waggle_shared::{
    draft::{DraftFault, DraftFolder},
    mutex::lock,
    private_folder::is_own,
};

/// Maximum number of attempts to make a file that another process keeps changing.
const ATTEMPTS_MAX: u32 = 3;
const BUFFER_BYTES: usize = 256 * 1024;
/// Age at which an unused file is removed. A downgrade within a week still finds its file; a later downgrade makes the
/// file again in less than a second.
const UNUSED_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Length of a SHA-256 digest in hexadecimal. The name of a file ends with its digest.
const DIGEST_CHARS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeFault {
    #[error("failed to make {}", path.display())]
    Folder { path: PathBuf, source: DraftFault },
    #[error("failed to make {}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The content does not match its digest.
    #[error("{reason}")]
    Damaged { reason: String },
    #[error("another process keeps changing {}; set WAGGLE_DATA_DIR to another folder", path.display())]
    Changed { path: PathBuf },
}

/// The source of a file's content.
pub(super) trait Content: fmt::Debug + Send + Sync {
    /// Opens the content. The last read fails if the content is not complete.
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;

    /// An error for content that does not match its digest.
    fn damage(&self) -> String;
}

/// The size and the digest of a content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Measure {
    pub(super) bytes: u64,
    /// SHA-256, in hexadecimal.
    pub(super) sha256: String,
}

impl Measure {
    /// Reads a content of at most `bytes_max` bytes. A longer content is an error.
    pub(super) fn of(content: &dyn Content, bytes_max: u64) -> io::Result<Self> {
        let mut bytes = Counter(0);
        let sha256 = copy(&mut content.open()?, &mut bytes, bytes_max + 1)?;
        if bytes.0 > bytes_max {
            return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
        }
        Ok(Self { bytes: bytes.0, sha256 })
    }
}

/// Counts the bytes that are written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Metadata that reveals a changed or replaced file without reading the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp([i128; 6]);

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
        let modified = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Self([found.dev().into(), found.ino().into(), found.size().into(), found.mode().into(), changed, modified])
    }
}

/// A file whose digest was verified. The lock prevents other processes from removing the file.
#[derive(Debug)]
struct Verified {
    stamp: Stamp,
    _lock: File,
}

/// The beginning of the name of a file and of its versions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family(pub(super) &'static str);

/// A file whose content is known, and can be made again.
#[derive(Debug)]
pub(crate) struct MadeFile {
    family: Family,
    content: Box<dyn Content>,
    measure: Measure,
    folder: PathBuf,
    path: PathBuf,
    verified: Mutex<Option<Verified>>,
}

impl MadeFile {
    /// Makes the file in the folder if it is not there yet, and removes old unused files of its family. The file's name
    /// is `name`, which begins with the name of the family, and the digest.
    pub(super) fn new(
        family: Family,
        name: &str,
        content: Box<dyn Content>,
        measure: Measure,
        folder: &Path,
    ) -> Result<Self, MakeFault> {
        let path = folder.join(format!("{name}-{}", measure.sha256));
        let made = Self { family, content, measure, folder: folder.to_owned(), path, verified: Mutex::default() };
        made.ensure()?;
        made.sweep(SystemTime::now());
        Ok(made)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file again if its content does not match the digest. The digest is calculated only if the metadata
    /// changed.
    pub(crate) fn ensure(&self) -> Result<(), MakeFault> {
        let mut verified = lock(&self.verified);
        let now = fs::symlink_metadata(&self.path).ok().map(|found| Stamp::of(&found));
        if now.is_some() && now == verified.as_ref().map(|verified| verified.stamp) {
            return Ok(());
        }
        let file = |source| MakeFault::File { path: self.path.clone(), source };
        let folder = DraftFolder::open(self.folder.clone());
        let folder = folder.map_err(|source| MakeFault::Folder { path: self.path.clone(), source })?;
        for _ in 0..ATTEMPTS_MAX {
            match self.verify() {
                Ok(Some(found)) => {
                    *verified = Some(found);
                    return Ok(());
                }
                Ok(None) => {
                    tracing::warn!(path = %self.path.display(), "a file was changed and is replaced");
                    fs::remove_file(&self.path).or_else(ignore_absence).map_err(file)?;
                }
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => return Err(file(fault)),
            }
            self.make(&folder)?;
        }
        Err(MakeFault::Changed { path: self.path.clone() })
    }

    /// Locks and verifies the file. Returns `None` if another user could change the file, or if its type, size or
    /// digest is wrong.
    fn verify(&self) -> io::Result<Option<Verified>> {
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.path) {
            Ok(file) => file,
            // The path is a symbolic link.
            Err(fault) if fault.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let found = file.metadata()?;
        if !found.is_file() || !is_own(&found) || found.len() != self.measure.bytes {
            return Ok(None);
        }
        file.lock_shared()?;
        if file.metadata()?.nlink() == 0 {
            // While this process waited for the lock, another process removed the file because of its age.
            return Err(io::ErrorKind::NotFound.into());
        }
        let digest = copy(&mut file, &mut io::sink(), self.measure.bytes)?;
        // The stamp was taken before the read, so the next check detects a change during the read.
        Ok((digest == self.measure.sha256).then(|| Verified { stamp: Stamp::of(&found), _lock: file }))
    }

    /// Removes old files of the family that no process uses.
    fn sweep(&self, now: SystemTime) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let others = entries.map(|entry| entry.path()).filter(|path| *path != self.path);
        for path in others.filter(|path| is_of_family(path, self.family)) {
            match remove_unused(&path, now) {
                Ok(true) => tracing::info!(path = %path.display(), "removed an unused file of another version"),
                Ok(false) => {}
                Err(fault) => {
                    let error = &fault as &dyn Error;
                    tracing::warn!(path = %path.display(), error, "failed to remove an unused file");
                }
            }
        }
    }

    fn make(&self, folder: &DraftFolder) -> Result<(), MakeFault> {
        let of_folder = |source| MakeFault::Folder { path: self.path.clone(), source };
        let damaged = || MakeFault::Damaged { reason: self.content.damage() };
        let draft = folder.draft().map_err(of_folder)?;
        let mut out: &File = draft.file();
        let copied = self.content.open().and_then(|mut content| copy(&mut content, &mut out, self.measure.bytes));
        match copied {
            Ok(digest) if digest == self.measure.sha256 => draft.publish(&self.path).map_err(of_folder),
            Ok(_) => Err(damaged()),
            Err(fault) if is_damage(fault.kind()) => Err(damaged()),
            Err(source) => Err(MakeFault::File { path: self.path.clone(), source }),
        }
    }
}

fn is_of_family(path: &Path, family: Family) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with(family.0));
    let digest = name.and_then(|name| name.rsplit_once('-')).map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == DIGEST_CHARS && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes a file if it is old and not locked. Returns whether the file was removed.
fn remove_unused(path: &Path, now: SystemTime) -> io::Result<bool> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    let age = now.duration_since(found.modified()?).unwrap_or_default();
    if !found.is_file() || age < UNUSED_MAX {
        return Ok(false);
    }
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).or_else(ignore_absence).map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(fault)) => Err(fault),
    }
}

/// Whether an error of the decoder means invalid or truncated gzip data.
fn is_damage(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Copies at most `bytes_max` bytes and returns the digest of the copied bytes.
fn copy(from: &mut impl Read, to: &mut impl Write, bytes_max: u64) -> io::Result<String> {
    let mut from = from.take(bytes_max);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut digest = Sha256::new();
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
            Err(fault) => return Err(fault),
        };
        let piece = buffer.get(..length).unwrap_or_default();
        digest.update(piece);
        to.write_all(piece)?;
    }
    Ok(format!("{:x}", digest.finalize()))
}

fn ignore_absence(fault: io::Error) -> io::Result<()> {
    if fault.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(fault) }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt as _, symlink},
        thread,
    };

    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::machines::{firmware_binary::EmbeddedFirmware, krun::unpack};

    fn embedded(content: &[u8]) -> EmbeddedFirmware {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(content).unwrap();
        EmbeddedFirmware {
            name: "libkrunfw.so.5.0.0",
            sha256: format!("{:x}", Sha256::digest(content)).leak(),
            bytes: content.len() as u64,
            compressed: packed.finish().unwrap().leak(),
        }
    }

    #[test]
    fn firmware_is_unpacked_once_into_a_private_folder() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("firmware");
        let first = unpack(embedded(b"a kernel"), &folder).unwrap();
        assert_eq!(fs::read(first.path()).unwrap(), b"a kernel");
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let inode = fs::metadata(first.path()).unwrap().ino();
        let second = unpack(embedded(b"a kernel"), &folder).unwrap();
        assert_eq!(fs::metadata(second.path()).unwrap().ino(), inode);
    }

    #[test]
    fn changed_firmware_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let unpacked = unpack(embedded(b"a kernel"), folder.path()).unwrap();
        let changes: [fn(&Path); 5] = [
            |path| fs::write(path, b"A kernel").unwrap(),
            |path| fs::write(path, b"short").unwrap(),
            |path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap(),
            |path| fs::remove_file(path).unwrap(),
            |path| {
                fs::rename(path, path.with_extension("moved")).unwrap();
                symlink(path.with_extension("moved"), path).unwrap();
            },
        ];
        for change in changes {
            change(unpacked.path());
            unpacked.ensure().unwrap();
            assert_eq!(fs::read(unpacked.path()).unwrap(), b"a kernel");
            let found = fs::symlink_metadata(unpacked.path()).unwrap();
            assert!(found.is_file() && found.mode() & 0o022 == 0, "{found:?}");
        }
    }

    #[test]
    fn two_versions_coexist() {
        let folder = tempfile::tempdir().unwrap();
        let old = unpack(embedded(b"old"), folder.path()).unwrap();
        let new = unpack(embedded(b"new"), folder.path()).unwrap();
        for unpacked in [&old, &new] {
            unpacked.ensure().unwrap();
        }
        assert_eq!((fs::read(old.path()).unwrap(), fs::read(new.path()).unwrap()), (b"old".into(), b"new".into()));
    }

    #[test]
    fn old_unused_firmware_of_other_versions_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let [unused, used, young] =
            [b"unused", b"in use", b"young!"].map(|content| unpack(embedded(content), folder.path()).unwrap());
        fs::write(folder.path().join("libkrunfw.so.5"), b"not ours").unwrap();
        let week = UNUSED_MAX + Duration::from_secs(1);
        let gone = unused.path().to_owned();
        drop(unused);
        let young_path = young.path().to_owned();
        drop(young);
        let soon = SystemTime::now() + week;
        File::open(&young_path).unwrap().set_modified(soon - Duration::from_secs(60)).unwrap();
        let current = unpack(embedded(b"current"), folder.path()).unwrap();
        assert!(gone.exists(), "removed although it is not old yet");
        current.sweep(soon);
        let left = [&gone, used.path(), &young_path, current.path(), &folder.path().join("libkrunfw.so.5")];
        assert_eq!(left.map(|path| path.exists()), [false, true, true, true, true]);
        let again = unpack(embedded(b"unused"), folder.path()).unwrap();
        assert_eq!(fs::read(again.path()).unwrap(), b"unused");
        used.ensure().unwrap();
    }

    #[test]
    fn concurrent_unpacking_yields_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let content = vec![7; 4 * BUFFER_BYTES];
        let embedded = embedded(&content);
        let read = || fs::read(unpack(embedded, folder.path()).unwrap().path()).unwrap();
        thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            assert!(all.into_iter().all(|one| one.join().unwrap() == content));
        });
    }

    #[test]
    fn damaged_embedded_firmware_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let whole = embedded(b"a kernel");
        let other = EmbeddedFirmware { sha256: "00", ..whole };
        assert!(matches!(unpack(other, folder.path()).unwrap_err(), MakeFault::Damaged { .. }));
        let nonsense = EmbeddedFirmware { compressed: b"not gzip", ..whole };
        assert!(matches!(unpack(nonsense, folder.path()).unwrap_err(), MakeFault::Damaged { .. }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().flatten().filter(|one| one.file_name() != ".lock").count(), 0);
    }
}
