// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The files of a snapshot that is kept on the disk.
//!
//! ```text
//!  machine.json   the description, with the digests of the other files, and its own digest in a second line
//!  image          the image's file, a hard link. Its size is checked, but not its content
//!  scratch        the disk
//!  memory         the guest's memory, sparse
//!  devices        the state of the VMM's devices; only the confined VMM decodes it
//! ```
//!
//! The memory is copied into a file in memory while it is read, so that nothing can change it after its digest was
//! checked.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use super::{
    disks,
    file_names::SCRATCH,
    image_pool,
    machine_image::MachineImage,
    memory_file::MemoryFile,
    origin::Origin,
    snapshot::{GuestFile, Pasts, SavedDisk, SavedMemory, Shape, VmSnapshot, read_devices},
};
use crate::domain::machine::{PortFuture, Snapshot, SnapshotFault};

const DESCRIPTION: &str = "machine.json";
const IMAGE: &str = "image";
const MEMORY: &str = "memory";
const DEVICES: &str = "devices";
/// The version of this format.
const VERSION: u32 = 1;
/// Maximum size of the description, in bytes. The image's variables and the operator's certificates are a part of it.
const DESCRIPTION_BYTES_MAX: u64 = 16 << 20;
/// Size of the blocks of a digest. Blocks of zeros are left out, because a copy may have holes in their place.
const BLOCK_BYTES: usize = 64 << 10;

#[derive(Debug, Deserialize, Serialize)]
struct Description {
    version: u32,
    origin: Origin,
    shape: Shape,
    image: MachineImage,
    image_bytes: u64,
    disk: Measure,
    memory: Option<MemoryMeasures>,
}

#[derive(Debug, Deserialize, Serialize)]
struct MemoryMeasures {
    guest: Measure,
    devices: Measure,
}

/// The size and the digest of a file.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Measure {
    bytes: u64,
    sha256: String,
}

/// A file is not what was written.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not what was saved", path.display())]
    Changed { path: PathBuf },
    #[error("{} is invalid", path.display())]
    Invalid { path: PathBuf, source: serde_json::Error },
    #[error("{} has version {found}; this version of waggle reads version {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
}

#[derive(Debug, thiserror::Error)]
#[error("failed to write {}", path.display())]
struct WriteFault {
    path: PathBuf,
    source: io::Error,
}

impl Snapshot for VmSnapshot {
    fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    fn write<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<(), SnapshotFault>> {
        Box::pin(write(self, folder.to_owned()))
    }
}

/// Writes the files into `folder`, and waits until they are on the disk.
///
/// # Errors
/// [`SnapshotFault::Failed`].
async fn write(snapshot: &VmSnapshot, folder: PathBuf) -> Result<(), SnapshotFault> {
    let (shape, image, origin) = (snapshot.shape.clone(), snapshot.image.clone(), Arc::clone(&snapshot.origin));
    let memory = match &snapshot.memory {
        Some(memory) => {
            let taken = || SnapshotFault::Failed { source: "a machine continues with the memory".into() };
            Some((memory.guest.file().ok_or_else(taken)?, memory.devices.clone()))
        }
        None => None,
    };
    let (disk, pool) = (snapshot.disk.path(), snapshot.image_pool.clone());
    let write = move || {
        let at = |name: &str| {
            let path = folder.join(name);
            move |source| WriteFault { path, source }
        };
        image_pool::put(&image, &pool, &folder.join(IMAGE)).map_err(at(IMAGE))?;
        let image_bytes = image.erofs.metadata().map_err(at(IMAGE))?.len();
        link_or_copy(&disk, &folder.join(SCRATCH)).map_err(at(SCRATCH))?;
        let disk = File::open(folder.join(SCRATCH)).and_then(|file| {
            file.sync_all()?;
            measure(&file, None)
        });
        let disk = disk.map_err(at(SCRATCH))?;
        let memory = match memory {
            Some((guest, devices)) => Some(MemoryMeasures {
                guest: write_file(&folder.join(MEMORY), guest.file()).map_err(at(MEMORY))?,
                devices: write_file(&folder.join(DEVICES), devices.file()).map_err(at(DEVICES))?,
            }),
            None => None,
        };
        let origin = Origin::clone(&origin);
        let description = Description { version: VERSION, origin, shape, image, image_bytes, disk, memory };
        write_description(&folder, &description).map_err(at(DESCRIPTION))
    };
    let written = spawn_blocking(write).await.map_err(|source| SnapshotFault::Failed { source: source.into() })?;
    written.map_err(|source| SnapshotFault::Failed { source: source.into() })
}

fn write_description(folder: &Path, description: &Description) -> io::Result<()> {
    let text = serde_json::to_string(description)?;
    let mut file = new_file(&folder.join(DESCRIPTION))?;
    write!(file, "{text}\n{:x}\n", Sha256::digest(&text))?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

fn write_file(path: &Path, content: &File) -> io::Result<Measure> {
    let file = new_file(path)?;
    file.set_len(content.metadata()?.len())?;
    let measured = measure(content, Some(&file))?;
    file.sync_all()?;
    Ok(measured)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A hard link takes no space. Neither file changes afterwards.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copy = new_file(to)?;
    disks::copy_data(&File::open(from)?, &copy)?;
    copy.sync_all()
}

/// Reads the files in `folder`. The memory is left out if this program on this host cannot continue with it.
///
/// # Errors
/// [`SnapshotFault::Damaged`], or a failure of the host.
pub(super) async fn read(folder: PathBuf, origin: Arc<Origin>) -> Result<VmSnapshot, SnapshotFault> {
    let read = spawn_blocking(move || read_folder(&folder, origin)).await;
    read.map_err(|source| SnapshotFault::Failed { source: source.into() })?
}

fn read_folder(folder: &Path, origin: Arc<Origin>) -> Result<VmSnapshot, SnapshotFault> {
    let description = read_description(&folder.join(DESCRIPTION)).map_err(damaged)?;
    let Description { version: _, origin: saved_by, shape, mut image, image_bytes, disk, memory } = description;
    image.erofs = folder.join(IMAGE);
    let found = image.erofs.metadata().map_err(|source| damaged(Damage::Read { path: image.erofs.clone(), source }))?;
    if found.len() != image_bytes {
        return Err(damaged(Damage::Changed { path: image.erofs }));
    }
    check(&folder.join(SCRATCH), &disk, None).map_err(damaged)?;
    let memory = match (memory, saved_by.difference(&origin)) {
        (None, _) => None,
        (Some(_), Some(reason)) => {
            tracing::info!(reason, "a saved machine will boot, because its memory cannot be used");
            None
        }
        (Some(saved), None) => Some(read_memory(folder, &shape, &saved)?),
    };
    let image_pool = folder.to_owned();
    Ok(VmSnapshot { shape, memory, disk: SavedDisk::in_folder(folder.to_owned()), image, image_pool, origin })
}

fn read_memory(folder: &Path, shape: &Shape, saved: &MemoryMeasures) -> Result<SavedMemory, SnapshotFault> {
    let failed = |source: io::Error| SnapshotFault::Failed { source: source.into() };
    let guest = MemoryFile::of_guest(shape.memory_mib).map_err(failed)?;
    check(&folder.join(MEMORY), &saved.guest, Some(guest.file())).map_err(damaged)?;
    let path = folder.join(DEVICES);
    let devices = File::open(&path).and_then(|file| read_devices(&file));
    let devices = devices.map_err(|source| damaged(Damage::Read { path: path.clone(), source }))?;
    // The copy is checked, not the file.
    if measure(devices.file(), None).map_err(failed)? != saved.devices {
        return Err(damaged(Damage::Changed { path }));
    }
    Ok(SavedMemory { guest: GuestFile::single(guest), devices, pasts: Pasts::UNKNOWN })
}

/// A file that the host cannot read at the moment is not damaged, nor is one of another version.
fn damaged(damage: Damage) -> SnapshotFault {
    let is_damage = match &damage {
        Damage::Read { source, .. } => {
            matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
        }
        Damage::Changed { .. } | Damage::Invalid { .. } => true,
        Damage::Version { .. } => false,
    };
    if is_damage {
        SnapshotFault::Damaged { source: damage.into() }
    } else {
        SnapshotFault::Failed { source: damage.into() }
    }
}

fn read_description(path: &Path) -> Result<Description, Damage> {
    let read = |source| Damage::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(read)?;
    file.take(DESCRIPTION_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
    let mut lines = text.lines();
    let (text, digest) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if format!("{:x}", Sha256::digest(text)) != digest {
        return Err(Damage::Changed { path: path.to_owned() });
    }
    let invalid = |source| Damage::Invalid { path: path.to_owned(), source };
    let found: Version = serde_json::from_str(text).map_err(invalid)?;
    if found.version != VERSION {
        return Err(Damage::Version { path: path.to_owned(), found: found.version });
    }
    serde_json::from_str(text).map_err(invalid)
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Compares a file with its measure, and copies it.
fn check(path: &Path, expected: &Measure, copy: Option<&File>) -> Result<(), Damage> {
    let read = |source| Damage::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let changed = || Damage::Changed { path: path.to_owned() };
    if file.metadata().map_err(read)?.len() != expected.bytes {
        return Err(changed());
    }
    if let Some(copy) = copy
        && copy.metadata().map_err(read)?.len() != expected.bytes
    {
        return Err(changed());
    }
    if measure(&file, copy).map_err(read)? == *expected { Ok(()) } else { Err(changed()) }
}

/// Measures a file, and writes its blocks to the copy, which has the same size and contains zeros only.
fn measure(file: &File, copy: Option<&File>) -> io::Result<Measure> {
    let bytes = file.metadata()?.len();
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; BLOCK_BYTES]);
    let block_bytes = BLOCK_BYTES as u64;
    let mut offset = 0;
    while offset < bytes {
        let signed = i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        match lseek(file, signed, Whence::SeekData) {
            Ok(data) => offset = offset.max(data.unsigned_abs() / block_bytes * block_bytes),
            // The rest of the file is a hole.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        }
        let count = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let block = buffer.get_mut(..count).unwrap_or_default();
        file.read_exact_at(block, offset)?;
        if block.iter().any(|byte| *byte != 0) {
            digest.update(offset.to_le_bytes());
            digest.update(&*block);
            if let Some(copy) = copy {
                copy.write_all_at(block, offset)?;
            }
        }
        offset += block_bytes;
    }
    Ok(Measure { bytes, sha256: format!("{:x}", digest.finalize()) })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn saved(folder: &Path) {
        for name in ["base", "base/run", "saved"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let (image, disk) = (folder.join("image.erofs"), folder.join("base/run").join(SCRATCH));
        fs::write(&image, "image").unwrap();
        fs::write(&disk, [7; 3 * BLOCK_BYTES + 1]).unwrap();
        let guest = MemoryFile::of_guest(1).unwrap();
        guest.file().write_all_at(&[9; BLOCK_BYTES], 5 * BLOCK_BYTES as u64).unwrap();
        let image = MachineImage {
            erofs: image.clone(),
            cached: image,
            env: Vec::new(),
            working_directory: None,
            agent: None,
            _lease: None,
        };
        let snapshot = VmSnapshot {
            shape: Shape { image: "/cache/image".into(), cpus: 1, memory_mib: 1, disk_mib: 64, boot: vec![1, 2] },
            memory: Some(SavedMemory {
                guest: GuestFile::single(guest),
                devices: MemoryFile::with_content(b"devices").unwrap(),
                pasts: Pasts::UNKNOWN,
            }),
            disk: SavedDisk::in_folder(folder.join("base/run")),
            image,
            image_pool: folder.join("pool"),
            origin: Arc::default(),
        };
        tokio::runtime::Runtime::new().unwrap().block_on(write(&snapshot, folder.join("saved"))).unwrap();
    }

    #[test]
    fn saved_files_are_read_back_and_share_the_image_and_the_disk() {
        let folder = TempDir::new().unwrap();
        saved(folder.path());
        let saved = folder.path().join("saved");
        let read = read_folder(&saved, Arc::default()).unwrap();
        let memory = read.memory.unwrap();
        let mut content = vec![0; BLOCK_BYTES];
        memory.guest.file().unwrap().file().read_exact_at(&mut content, 5 * BLOCK_BYTES as u64).unwrap();
        assert!(content.iter().all(|byte| *byte == 9));
        assert_eq!(measure(memory.devices.file(), None).unwrap().bytes, 7);
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(saved.join(SCRATCH).metadata().unwrap().nlink(), 2);
        assert_eq!(saved.join(IMAGE).metadata().unwrap().nlink(), 2);
        // Memory is sparse.
        assert!(saved.join(MEMORY).metadata().unwrap().blocks() * 512 < 2 * BLOCK_BYTES as u64);
    }

    #[test]
    fn memory_of_another_host_is_left_out() {
        let folder = TempDir::new().unwrap();
        saved(folder.path());
        let other = Origin::of(Path::new("/qemu"), "kvm", Path::new("/kernel"), b"agent");
        let read = read_folder(&folder.path().join("saved"), Arc::new(other)).unwrap();
        assert!(read.memory.is_none());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_description_is_damage(mut bytes: Vec<u8>, has_digest: bool) {
            let folder = TempDir::new().unwrap();
            if has_digest {
                bytes.retain(|byte| *byte != b'\n' && *byte != b'\r');
                let digest = format!("\n{:x}\n", Sha256::digest(&bytes));
                bytes.extend_from_slice(digest.as_bytes());
            }
            let path = folder.path().join(DESCRIPTION);
            fs::write(&path, bytes).unwrap();
            proptest::prop_assert!(read_description(&path).is_err());
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let folder = TempDir::new().unwrap();
        saved(folder.path());
        let saved = folder.path().join("saved");
        let reads = || read_folder(&saved, Arc::default());
        reads().unwrap();
        let mut tried = 0;
        for name in [DESCRIPTION, MEMORY, DEVICES, SCRATCH] {
            let path = saved.join(name);
            // Not through a hard link.
            let content = fs::read(&path).unwrap();
            let put = |content: &[u8]| {
                fs::remove_file(&path).unwrap();
                fs::write(&path, content).unwrap();
            };
            let step = content.len() / 40 + 1;
            for at in (0..content.len()).step_by(step) {
                let mut changed = content.clone();
                changed[at] ^= 0x20;
                put(&changed);
                assert!(matches!(reads(), Err(SnapshotFault::Damaged { .. })), "{name}, byte {at}");
                put(&content[..at]);
                assert!(matches!(reads(), Err(SnapshotFault::Damaged { .. })), "{name}, cut at {at}");
                tried += 2;
            }
            put(&content);
            reads().unwrap();
        }
        assert!(tried > 150, "{tried}");
    }
}
