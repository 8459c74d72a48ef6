// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The version of the data folder's layout.
//!
//! Each version of the program knows one version of the layout. A folder with a newer one is refused, and a folder with
//! an older one is migrated. A folder without the file is one of version 0: new, or of a program from before versions.
//!
//! ```text
//! <data>/version         the version, and the program that wrote it
//! <data>/.version-lock   each process that uses the folder holds it shared, and a migration exclusively
//! ```
//!
//! docs/upgrading.md says how to go back to an older program.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use waggle_shared::private_folder;

const FILE: &str = "version";
/// Name of the file while it is written.
const NEW_FILE: &str = "version.new";
const LOCK: &str = ".version-lock";

/// Maximum bytes of the version file, which has about 40.
const FILE_BYTES_MAX: u64 = 4096;

/// Time that a migration waits for other processes that use the folder, as when two servers start at once.
const USERS_WAIT: Duration = Duration::from_secs(2);
/// Time to wait for the end of another process's migration, which only moves files.
const MIGRATION_WAIT: Duration = Duration::from_secs(60);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// A change of the folder from one version of the layout to the next. A crash may interrupt it, so it must be
/// repeatable.
type Migration = fn(&Path) -> io::Result<()>;

/// The migrations, from version 0 on. Their number is the version that this program knows.
const MIGRATIONS: &[Migration] = &[
    // The folders of version 0 keep their places, and `saved` is created when it is opened.
    |_folder| Ok(()),
];

/// The content of the version file. Newer programs may add fields.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    version: usize,
    /// The program that wrote the file, for people.
    program: String,
}

/// A data folder in use, with the version that this program knows. Other programs migrate the folder only after this
/// is dropped.
#[derive(Debug)]
pub struct DataFolder {
    _lock: File,
}

/// The data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderFault {
    /// A newer program has used the folder.
    #[error(
        "the data folder {} has version {found} and was last used by waggle {program}; waggle {} knows only versions \
         up to {known}: install waggle {program} again, or set another folder with --data-dir or WAGGLE_DATA_DIR \
         (docs/upgrading.md says how to go back)",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, found: usize, program: String, known: usize },
    /// The version file is damaged.
    #[error(
        "the file {} is invalid; if no newer version of waggle has used the data folder, remove the file",
        path.display()
    )]
    Invalid { path: PathBuf, source: serde_json::Error },
    /// Processes of older programs use the folder, so that it cannot be migrated.
    #[error(
        "the data folder {} must be migrated from version {found}, but other processes of waggle use it; stop them \
         first",
        path.display()
    )]
    InUse { path: PathBuf, found: usize },
    /// Another process has migrated the folder for too long, or only holds the lock.
    #[error("another process is migrating the data folder {}; retry when it has ended", path.display())]
    Migrating { path: PathBuf },
    /// An operation on files failed.
    #[error(
        "failed to {operation} the data folder {}; set another one with --data-dir or WAGGLE_DATA_DIR",
        path.display()
    )]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl DataFolder {
    /// Creates the folder if it is missing, checks its version, and migrates an older folder. Blocks while another
    /// process migrates the folder. The folders in it check by themselves that only this user can change them.
    ///
    /// # Errors
    /// [`DataFolderFault`].
    pub fn open(path: &Path) -> Result<Self, DataFolderFault> {
        Self::open_with(path, MIGRATIONS)
    }

    fn open_with(path: &Path, migrations: &[Migration]) -> Result<Self, DataFolderFault> {
        let fault = |operation| io_fault(operation, path);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault("create"))?;
        let lock = private_folder::open_lock(&path.join(LOCK)).map_err(fault("lock"))?;
        let begun = Instant::now();
        loop {
            match lock.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if begun.elapsed() < MIGRATION_WAIT => {
                    thread::sleep(LOCK_INTERVAL);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(DataFolderFault::Migrating { path: path.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(fault("lock")(source)),
            }
            let found = check_version(path, migrations.len())?;
            if found == migrations.len() {
                return Ok(Self { _lock: lock });
            }
            // The kernel releases the shared lock before it tries for the exclusive one.
            match lock.try_lock() {
                // Another process may have migrated the folder in between.
                Ok(()) => migrate(path, migrations)?,
                Err(TryLockError::WouldBlock) if begun.elapsed() < USERS_WAIT => {
                    lock.unlock().map_err(fault("lock"))?;
                    thread::sleep(LOCK_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => return Err(DataFolderFault::InUse { path: path.to_owned(), found }),
                Err(TryLockError::Error(source)) => return Err(fault("lock")(source)),
            }
        }
    }

    /// Checks the version of a folder, which need not exist, and changes nothing.
    ///
    /// # Errors
    /// [`DataFolderFault`].
    pub fn check(path: &Path) -> Result<(), DataFolderFault> {
        check_version(path, MIGRATIONS.len()).map(drop)
    }
}

/// Returns the version of the folder, which is at most `known`.
fn check_version(path: &Path, known: usize) -> Result<usize, DataFolderFault> {
    let file = match private_folder::open(&path.join(FILE)) {
        Ok(file) => file,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(fault) => return Err(io_fault("read the version of", path)(fault)),
    };
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(io_fault("read the version of", path))?;
    let record: Record = serde_json::from_slice(&content)
        .map_err(|source| DataFolderFault::Invalid { path: path.join(FILE), source })?;
    if record.version > known {
        let program = record.program.chars().take(64).filter(|character| !character.is_control()).collect();
        return Err(DataFolderFault::Newer { path: path.to_owned(), found: record.version, program, known });
    }
    Ok(record.version)
}

/// Migrates the folder to the version that the program knows. The caller holds the exclusive lock.
fn migrate(path: &Path, migrations: &[Migration]) -> Result<(), DataFolderFault> {
    let found = check_version(path, migrations.len())?;
    for (version, migration) in (1..).zip(migrations).skip(found) {
        migration(path).map_err(io_fault("migrate", path))?;
        write_version(path, version).map_err(io_fault("write the version of", path))?;
        tracing::info!(folder = %path.display(), version, "the data folder has a new version");
    }
    Ok(())
}

/// Writes the version, so that the file is whole after a crash. The caller holds the exclusive lock.
fn write_version(path: &Path, version: usize) -> io::Result<()> {
    let record = Record { version, program: env!("CARGO_PKG_VERSION").to_owned() };
    let new = path.join(NEW_FILE);
    match fs::remove_file(&new) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(format!("{}\n", serde_json::to_string(&record)?).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path.join(FILE))?;
    File::open(path)?.sync_all()
}

fn io_fault(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataFolderFault {
    let path = path.to_owned();
    move |source| DataFolderFault::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn version(data: &Path) -> String {
        fs::read_to_string(data.join(FILE)).unwrap()
    }

    /// A migration that fails if it runs out of order.
    fn second(folder: &Path) -> io::Result<()> {
        assert!(version(folder).starts_with("{\"version\":1,"));
        fs::write(folder.join("second"), "")
    }

    fn third(folder: &Path) -> io::Result<()> {
        assert!(version(folder).starts_with("{\"version\":2,"));
        fs::rename(folder.join("second"), folder.join("third"))
    }

    #[test]
    fn folders_without_a_version_are_migrated() {
        let outer = tempfile::tempdir().unwrap();
        let data = outer.path().join("data");
        for _ in 0..2 {
            drop(DataFolder::open(&data).unwrap());
            assert_eq!(version(&data), format!("{{\"version\":1,\"program\":\"{}\"}}\n", env!("CARGO_PKG_VERSION")));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
    }

    #[test]
    fn older_folders_are_migrated_in_order_and_only_when_no_other_process_uses_them() {
        let data = tempfile::tempdir().unwrap();
        let older = DataFolder::open(data.path()).unwrap();
        fs::write(data.path().join(NEW_FILE), "left by a crash").unwrap();
        let newer: &[Migration] = &[MIGRATIONS[0], second, third];
        let fault = DataFolder::open_with(data.path(), newer).unwrap_err();
        assert!(matches!(fault, DataFolderFault::InUse { found: 1, .. }), "{fault}");
        assert!(!data.path().join("second").exists());
        drop(older);
        let one = DataFolder::open_with(data.path(), newer).unwrap();
        assert!(data.path().join("third").exists());
        let _two = DataFolder::open_with(data.path(), newer).unwrap();
        drop(one);
        let fault = DataFolder::open(data.path()).unwrap_err().to_string();
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(
            fault,
            format!(
                "the data folder {} has version 3 and was last used by waggle {own}; waggle {own} knows only versions \
                 up to 1: install waggle {own} again, or set another folder with --data-dir or WAGGLE_DATA_DIR \
                 (docs/upgrading.md says how to go back)",
                data.path().display()
            )
        );
        assert!(matches!(DataFolder::check(data.path()), Err(DataFolderFault::Newer { found: 3, .. })));
    }

    #[test]
    fn servers_that_start_at_once_migrate_a_folder_once() {
        let data = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| DataFolder::open_with(data.path(), &[MIGRATIONS[0], second, third]).unwrap());
            }
        });
        assert!(data.path().join("third").exists());
    }

    #[test]
    fn failed_migration_keeps_the_version() {
        let data = tempfile::tempdir().unwrap();
        let fails: Migration = |_| Err(io::Error::other("no"));
        let fault = DataFolder::open_with(data.path(), &[MIGRATIONS[0], fails]).unwrap_err();
        assert!(fault.to_string().starts_with("failed to migrate the data folder"), "{fault}");
        DataFolder::open(data.path()).unwrap();
    }

    #[test]
    fn damaged_version_is_refused_and_says_what_to_do() {
        let data = tempfile::tempdir().unwrap();
        DataFolder::check(&data.path().join("missing")).unwrap();
        for content in ["", "1", "{}", &"x".repeat(10_000), "{\"version\":-1,\"program\":\"\"}"] {
            fs::write(data.path().join(FILE), content).unwrap();
            let fault = DataFolder::open(data.path()).unwrap_err().to_string();
            assert!(
                fault.ends_with("if no newer version of waggle has used the data folder, remove the file"),
                "{fault}"
            );
        }
        fs::write(data.path().join(FILE), "{\"version\":1,\"program\":\"9.9\",\"more\":true}").unwrap();
        DataFolder::open(data.path()).unwrap();
    }
}
