// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The embedded libkrunfw, unpacked: the system's loader wants a file.
//!
//! It lies in a folder of this user's alone, under a name with its digest, so two versions never touch each other's. It
//! is read and compared with the digest before it is used, and again whenever it does not look as it did then. One that
//! was changed is replaced, and the log says so.
//!
//! Who uses a file holds a shared lock on it, machines included: they end with their server. One of another version
//! that nobody uses and that is old is removed; whoever still wanted it would unpack it again.

use std::{
    error::Error,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

use crate::mutex::lock;
use crate::{
    files::{
        draft::{DraftFault, DraftFolder},
        private_folder::is_own,
    },
    machines::firmware_binary::EmbeddedFirmware,
};

/// Another process may replace the file between a look and the next; more often than this somebody is at work.
const ATTEMPTS_MAX: u32 = 3;
const BUFFER_BYTES: usize = 256 * 1024;
/// How long a file stays, from when it was unpacked, that nobody uses: a version may be gone back to within days, and
/// unpacking it anew takes less than a second.
const KEPT_UNUSED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A SHA-256 in hexadecimal, which ends the name of what this unpacks.
const DIGEST_CHARS: usize = 64;

/// The embedded firmware cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackFault {
    /// Its folder.
    #[error("failed to unpack the firmware")]
    Folder { source: DraftFault },
    /// Its file.
    #[error("failed to unpack the firmware to {}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// What was built in is not what its digest says.
    #[error("the firmware in this program is damaged; install the program anew")]
    Damaged,
    /// It does not stay as it is.
    #[error("{} is changed by somebody as often as it is unpacked; WAGGLE_DATA_DIR names another folder", path.display())]
    Changed { path: PathBuf },
}

/// What tells a file from one that was changed or put in its place, without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp([i128; 6]);

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
        let modified = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Self([found.dev().into(), found.ino().into(), found.size().into(), found.mode().into(), changed, modified])
    }
}

/// A file that was compared, and is locked against its removal until this is dropped.
#[derive(Debug)]
struct Held {
    stamp: Stamp,
    _lock: File,
}

/// The file, as it was when it was compared last.
#[derive(Debug)]
pub(crate) struct Unpacked {
    embedded: EmbeddedFirmware,
    folder: PathBuf,
    path: PathBuf,
    held: Mutex<Option<Held>>,
}

impl Unpacked {
    /// Unpacks the library below the folder, or finds it there; either way it is whole afterwards. Old ones go.
    pub(crate) fn new(embedded: EmbeddedFirmware, folder: &Path) -> Result<Self, UnpackFault> {
        let path = folder.join(format!("{}-{}", embedded.name, embedded.sha256));
        let unpacked = Self { embedded, folder: folder.to_owned(), path, held: Mutex::default() };
        unpacked.ensure()?;
        unpacked.sweep(SystemTime::now());
        Ok(unpacked)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the file is the one that was built in; costs nothing while it looks as it did the last time.
    pub(crate) fn ensure(&self) -> Result<(), UnpackFault> {
        let mut held = lock(&self.held);
        let now = fs::symlink_metadata(&self.path).ok().map(|found| Stamp::of(&found));
        if now.is_some() && now == held.as_ref().map(|held| held.stamp) {
            return Ok(());
        }
        let file = |source| UnpackFault::File { path: self.path.clone(), source };
        let folder = DraftFolder::open(self.folder.clone()).map_err(|source| UnpackFault::Folder { source })?;
        for _ in 0..ATTEMPTS_MAX {
            match self.look() {
                Ok(Some(whole)) => {
                    *held = Some(whole);
                    return Ok(());
                }
                Ok(None) => {
                    tracing::warn!(path = %self.path.display(), "the unpacked firmware had been changed and is replaced");
                    fs::remove_file(&self.path).or_else(ignore_absence).map_err(file)?;
                }
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => return Err(file(fault)),
            }
            self.unpack(&folder)?;
        }
        Err(UnpackFault::Changed { path: self.path.clone() })
    }

    /// The file, or nothing if it is not this user's, or not what its digest says.
    fn look(&self) -> io::Result<Option<Held>> {
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.path) {
            Ok(file) => file,
            // A link.
            Err(fault) if fault.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let found = file.metadata()?;
        if !found.is_file() || !is_own(&found) || found.len() != self.embedded.bytes {
            return Ok(None);
        }
        file.lock_shared()?;
        if file.metadata()?.nlink() == 0 {
            // It was old, and whoever held the lock has removed it.
            return Err(io::ErrorKind::NotFound.into());
        }
        let digest = copy(&mut file, &mut io::sink(), self.embedded.bytes)?;
        // Of the time before it was read: a change meanwhile shows at the next look.
        Ok((digest == self.embedded.sha256).then(|| Held { stamp: Stamp::of(&found), _lock: file }))
    }

    /// Removes what other versions have unpacked and nobody uses.
    fn sweep(&self, now: SystemTime) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| *path != self.path && is_unpacked(path)) {
            match remove_unused(&path, now) {
                Ok(true) => tracing::info!(path = %path.display(), "firmware of another version was removed"),
                Ok(false) => {}
                // It takes room and does no harm.
                Err(fault) => {
                    tracing::warn!(path = %path.display(), error = &fault as &dyn Error, "failed to remove unused firmware");
                }
            }
        }
    }

    fn unpack(&self, folder: &DraftFolder) -> Result<(), UnpackFault> {
        let of_folder = |source| UnpackFault::Folder { source };
        let draft = folder.draft().map_err(of_folder)?;
        let mut out: &File = draft.file();
        let unpacked = copy(&mut GzDecoder::new(self.embedded.compressed), &mut out, self.embedded.bytes);
        match unpacked {
            Ok(digest) if digest == self.embedded.sha256 => draft.publish(&self.path).map_err(of_folder),
            Ok(_) => Err(UnpackFault::Damaged),
            Err(fault) if says_damaged(fault.kind()) => Err(UnpackFault::Damaged),
            Err(source) => Err(UnpackFault::File { path: self.path.clone(), source }),
        }
    }
}

/// Whether a name is one that this gives.
fn is_unpacked(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with("libkrunfw"));
    let digest = name.and_then(|name| name.rsplit_once('-')).map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == DIGEST_CHARS && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes a file that is old and that nobody has locked, and says whether it did.
fn remove_unused(path: &Path, now: SystemTime) -> io::Result<bool> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    let age = now.duration_since(found.modified()?).unwrap_or_default();
    if !found.is_file() || age < KEPT_UNUSED {
        return Ok(false);
    }
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).or_else(ignore_absence).map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(fault)) => Err(fault),
    }
}

/// What the decoder says of bytes that are not gzip's, or not all.
fn says_damaged(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Copies at most `bytes_max`, and gives the digest of what was copied.
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
    fn firmware_is_unpacked_into_a_private_folder_and_found_there_again() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("firmware");
        let first = Unpacked::new(embedded(b"a kernel"), &folder).unwrap();
        assert_eq!(fs::read(first.path()).unwrap(), b"a kernel");
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let inode = fs::metadata(first.path()).unwrap().ino();
        let second = Unpacked::new(embedded(b"a kernel"), &folder).unwrap();
        assert_eq!(fs::metadata(second.path()).unwrap().ino(), inode);
    }

    #[test]
    fn firmware_that_was_changed_is_replaced_before_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let unpacked = Unpacked::new(embedded(b"a kernel"), folder.path()).unwrap();
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
    fn two_versions_lie_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let old = Unpacked::new(embedded(b"old"), folder.path()).unwrap();
        let new = Unpacked::new(embedded(b"new"), folder.path()).unwrap();
        for unpacked in [&old, &new] {
            unpacked.ensure().unwrap();
        }
        assert_eq!((fs::read(old.path()).unwrap(), fs::read(new.path()).unwrap()), (b"old".into(), b"new".into()));
    }

    #[test]
    fn old_firmware_of_other_versions_goes_unless_somebody_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let [unused, used, young] =
            [b"unused", b"in use", b"young!"].map(|content| Unpacked::new(embedded(content), folder.path()).unwrap());
        fs::write(folder.path().join("libkrunfw.so.5"), b"somebody's own").unwrap();
        let week = KEPT_UNUSED + Duration::from_secs(1);
        let gone = unused.path().to_owned();
        drop(unused);
        let young_path = young.path().to_owned();
        drop(young);
        let soon = SystemTime::now() + week;
        File::open(&young_path).unwrap().set_modified(soon - Duration::from_secs(60)).unwrap();
        let current = Unpacked::new(embedded(b"current"), folder.path()).unwrap();
        assert!(gone.exists(), "it is not old yet");
        current.sweep(soon);
        let left = [&gone, used.path(), &young_path, current.path(), &folder.path().join("libkrunfw.so.5")];
        assert_eq!(left.map(|path| path.exists()), [false, true, true, true, true]);
        // The other version is none the worse.
        let again = Unpacked::new(embedded(b"unused"), folder.path()).unwrap();
        assert_eq!(fs::read(again.path()).unwrap(), b"unused");
        used.ensure().unwrap();
    }

    #[test]
    fn many_unpack_at_once_and_all_have_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let content = vec![7; 4 * BUFFER_BYTES];
        let embedded = embedded(&content);
        let unpack = || fs::read(Unpacked::new(embedded, folder.path()).unwrap().path()).unwrap();
        thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(unpack)).collect();
            assert!(all.into_iter().all(|one| one.join().unwrap() == content));
        });
    }

    #[test]
    fn a_program_whose_firmware_is_damaged_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let whole = embedded(b"a kernel");
        let other = EmbeddedFirmware { sha256: "00", ..whole };
        assert!(matches!(Unpacked::new(other, folder.path()).unwrap_err(), UnpackFault::Damaged));
        let nonsense = EmbeddedFirmware { compressed: b"not gzip", ..whole };
        assert!(matches!(Unpacked::new(nonsense, folder.path()).unwrap_err(), UnpackFault::Damaged));
        assert_eq!(fs::read_dir(folder.path()).unwrap().flatten().filter(|one| one.file_name() != ".lock").count(), 0);
    }
}
