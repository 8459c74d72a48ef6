// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Lists a folder, including dot files. A recursive listing also includes all folders below it.
//!
//! A call reads all names, but sends only one page of them: the first names after a given one, in the order of their
//! bytes, where a name of a recursive listing is a path. The next call continues after the last name of the page, so
//! the pages neither repeat nor omit an entry that exists throughout, even if the folder changes in between.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, SFlag},
};
use rustix::fs::{AtFlags, FileType, RawDir, Stat, statat};
use waggle_protocol::{Fault, FaultKind, LISTING_BYTES_MAX, NAME_BYTES_MAX, Reply, reply::Entry};

use super::{
    path::{FileRoot, TargetPath},
    selection::{PageLimits, Selection},
    wire::Wire,
};
use crate::fault::{fault, fault_of};

/// Number of bytes of names after which a batch is sent. The batch then still fits into a frame.
const BATCH_BYTES: usize = 16 * 1024;

/// Maximum number of entries in one reply.
const BATCH: usize = 256;

/// Maximum number of levels of a recursive listing; each level needs an open file.
pub(super) const DEPTH_MAX: usize = 32;

/// Buffer size for reading a folder, as in glibc's `readdir`. musl's `readdir` uses 2 KiB, which is slower.
const READ_BYTES: usize = 32 * 1024;

/// Maximum length of the last name of a path in bytes: the kernel's own limit.
const LAST_NAME_BYTES_MAX: usize = 255;

/// The limits of reading names.
#[derive(Clone, Copy, Debug)]
struct WalkLimits {
    /// Number of names after which the walk only reads folders whose entries may belong to the page. Names that are not
    /// read are missing from the total.
    counted: u64,
    /// Maximum time.
    time: Duration,
}

/// An emulated processor reads a million names in a few seconds. The host waits two minutes for a listing.
const WALK_LIMITS: WalkLimits = WalkLimits { counted: 1_000_000, time: Duration::from_secs(60) };

/// Number of names between two looks at the time.
const NAMES_PER_LOOK: u64 = 1024;

/// A call's options.
pub(super) struct Options {
    pub(super) after: Vec<u8>,
    pub(super) entries_max: u32,
    pub(super) recursive: bool,
}

/// Sends a page of the folder's entries. Omits entries whose status can't be read, for example because they vanished
/// during the listing, and the content of subfolders that can't be read.
pub(super) fn folder(wire: &mut Wire, root: &FileRoot, path: &str, options: Options) -> Result<Reply<'static>, Fault> {
    let target = TargetPath::new(root, path);
    let failed = |source: io::Error| fault_of(&source, &format!("failed to list {}", target.named()));
    let top = target.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?;
    let entries = usize::try_from(options.entries_max).unwrap_or(usize::MAX).max(1);
    let selection = Selection::new(options.after, PageLimits { entries, bytes: LISTING_BYTES_MAX });
    let mut walk = Walk::new(selection, options.recursive, WALK_LIMITS);
    walk.folder(&top, &mut Vec::new(), 0).map_err(|stopped| match stopped {
        Stopped::File(source) => failed(source),
        Stopped::Time => {
            let why = format!("{} names were read, and there are more", walk.total);
            let right = "list its subfolders, or use execute";
            fault(FaultKind::TooLarge, format!("failed to list {}: {why}; {right}", target.named()))
        }
    })?;
    send(wire, &top, &walk.selection)?;
    Ok(Reply::ListEnd {
        total: walk.total,
        total_is_minimum: walk.too_deep || walk.uncounted,
        too_deep: walk.too_deep,
        next: walk.selection.next(),
    })
}

/// The reason for the early end of a walk.
#[derive(Debug)]
enum Stopped {
    /// The kernel's error.
    File(io::Error),
    /// The walk took too long.
    Time,
}

/// Reads the names of a folder.
struct Walk {
    selection: Selection,
    recursive: bool,
    limits: WalkLimits,
    deadline: Instant,
    /// Number of names that were read.
    total: u64,
    /// Whether a folder's content was omitted because the folder is too deep or its path is too long.
    too_deep: bool,
    /// Whether a folder's content was not read, because it is not on the page or the user may not read it.
    uncounted: bool,
}

impl Walk {
    fn new(selection: Selection, recursive: bool, limits: WalkLimits) -> Self {
        let deadline = Instant::now() + limits.time;
        Self { selection, recursive, limits, deadline, total: 0, too_deep: false, uncounted: false }
    }

    /// Reads the names in `folder`. `above` is the path of `folder` relative to the listed folder, with a slash at its
    /// end.
    fn folder(&mut self, folder: &File, above: &mut Vec<u8>, depth: usize) -> Result<(), Stopped> {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let mut names = RawDir::new(folder, buffer.spare_capacity_mut());
        while let Some(entry) = names.next() {
            let entry = entry.map_err(|errno| Stopped::File(errno.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.total += 1;
            if self.total.is_multiple_of(NAMES_PER_LOOK) && Instant::now() >= self.deadline {
                return Err(Stopped::Time);
            }
            let length = above.len();
            above.extend_from_slice(name.to_bytes());
            self.selection.offer(above);
            if self.recursive && is_folder(folder, name, entry.file_type()) {
                self.below(folder, name, above, depth)?;
            }
            above.truncate(length);
        }
        Ok(())
    }

    fn below(&mut self, at: &File, name: &CStr, above: &mut Vec<u8>, depth: usize) -> Result<(), Stopped> {
        above.push(b'/');
        if depth + 1 >= DEPTH_MAX || above.len() + LAST_NAME_BYTES_MAX > NAME_BYTES_MAX {
            self.too_deep = true;
            return Ok(());
        }
        if self.total >= self.limits.counted && !self.selection.can_contain(above) {
            self.uncounted = true;
            return Ok(());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = match openat(at, name, flags, Mode::empty()) {
            Ok(folder) => folder,
            // The folder was removed or replaced after its name was read.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(_unreadable) => {
                self.uncounted = true;
                return Ok(());
            }
        };
        match self.folder(&folder.into(), above, depth + 1) {
            // Folders in `/proc` vanish while they are read.
            Err(Stopped::File(_)) => self.uncounted = true,
            Ok(()) => {}
            stopped @ Err(Stopped::Time) => return stopped,
        }
        Ok(())
    }
}

/// Returns whether an entry is a folder. Some file systems do not report the types of entries with their names.
fn is_folder(folder: &File, name: &CStr, kind: FileType) -> bool {
    match kind {
        FileType::Directory => true,
        FileType::Unknown => statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR),
        FileType::RegularFile
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice => false,
    }
}

/// Sends the selected entries of the folder `top`.
fn send(wire: &mut Wire, top: &File, selection: &Selection) -> Result<(), Fault> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut parents = Parents { top, open: None };
    for name in selection.names() {
        let Ok(stat) = parents.status(name) else { continue };
        batch.push(Entry {
            name: name.to_vec(),
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_unix_s: stat.st_mtime,
        });
        bytes += name.len();
        if batch.len() == BATCH || bytes >= BATCH_BYTES {
            wire.reply(&Reply::Entries(std::mem::take(&mut batch)))?;
            bytes = 0;
        }
    }
    if batch.is_empty() { Ok(()) } else { wire.reply(&Reply::Entries(batch)) }
}

/// Reads the status of entries by their paths. Neighbours on a page mostly share a folder, so the last folder stays
/// open.
struct Parents<'a> {
    top: &'a File,
    open: Option<(Vec<u8>, OwnedFd)>,
}

impl Parents<'_> {
    fn status(&mut self, path: &[u8]) -> io::Result<Stat> {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
            return Ok(statat(self.top, path, AtFlags::SYMLINK_NOFOLLOW)?);
        };
        let (parent, name) = path.split_at(slash);
        if self.open.as_ref().is_none_or(|(open, _)| open != parent) {
            // A link that has replaced a folder since the walk must not lead elsewhere.
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve);
            self.open = Some((parent.to_vec(), openat2(self.top, parent, how)?));
        }
        let (_, folder) = self.open.as_ref().ok_or(Errno::ENOENT)?;
        Ok(statat(folder, name.get(1..).unwrap_or_default(), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const PAGE: PageLimits = PageLimits { entries: 5, bytes: 1000 };

    fn walked(folder: &Path, after: &str, limits: WalkLimits) -> Result<Walk, Stopped> {
        let mut walk = Walk::new(Selection::new(after.into(), PAGE), true, limits);
        walk.folder(&File::open(folder).unwrap(), &mut Vec::new(), 0)?;
        Ok(walk)
    }

    fn names(walk: &Walk) -> Vec<String> {
        walk.selection.names().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    }

    /// Creates ten folders with ten files each.
    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for outer in 0..10 {
            let below = folder.path().join(outer.to_string());
            fs::create_dir(&below).unwrap();
            (0..10).for_each(|inner| fs::write(below.join(inner.to_string()), "").unwrap());
        }
        folder
    }

    #[test]
    fn uncounted_folders_make_the_total_a_minimum_and_change_no_page() {
        let folder = tree();
        let few = WalkLimits { counted: 5, ..WALK_LIMITS };
        let (mut after, mut pages, mut has_minimum) = (Some(String::new()), 0, false);
        while let Some(start) = after {
            let (walk, all) = (walked(folder.path(), &start, few).unwrap(), walked(folder.path(), &start, WALK_LIMITS));
            let all = all.unwrap();
            assert_eq!((names(&walk), walk.selection.next()), (names(&all), all.selection.next()));
            assert_eq!((all.total, all.uncounted, walk.uncounted), (110, false, walk.total < 110));
            has_minimum |= walk.uncounted;
            after = all.selection.next().map(|name| String::from_utf8(name).unwrap());
            pages += 1;
        }
        assert_eq!((pages, has_minimum), (22, true));
    }

    #[test]
    fn walk_that_takes_too_long_stops() {
        let folder = tempfile::tempdir().unwrap();
        (0..NAMES_PER_LOOK).for_each(|number| fs::write(folder.path().join(number.to_string()), "").unwrap());
        let limits = WalkLimits { time: Duration::ZERO, ..WALK_LIMITS };
        assert!(matches!(walked(folder.path(), "", limits), Err(Stopped::Time)));
    }

    #[test]
    fn content_of_folders_that_are_too_deep_is_omitted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("d/".repeat(DEPTH_MAX + 1))).unwrap();
        let walk = walked(folder.path(), "", WALK_LIMITS).unwrap();
        assert_eq!((walk.total, walk.too_deep), (DEPTH_MAX as u64, true));
    }

    // QEMU's user-mode emulation, which runs the tests for aarch64, has no `openat2`.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn status_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        fs::write(folder.path().join("real/file"), "123").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        let top = File::open(folder.path()).unwrap();
        let mut parents = Parents { top: &top, open: None };
        assert_eq!(parents.status(b"real/file").unwrap().st_size, 3);
        assert_eq!(parents.status(b"link/file").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(parents.status(b"real/../real/file").unwrap().st_size, 3);
        assert_eq!(parents.status(b"../x").unwrap_err().raw_os_error(), Some(Errno::EXDEV as i32));
        assert_eq!(parents.status(b"link").unwrap().st_mode & 0o170_000, 0o120_000);
    }
}
