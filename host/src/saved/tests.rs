// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the store. The killed processes are in their own file.

mod kills;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    time::Instant,
};

use tempfile::TempDir;
use waggle_images::reference::PullRights;
use waggle_shared::causes::chain;

use super::*;
use crate::{
    domain::{
        environment::EnvironmentName,
        environment_id::EnvironmentId,
        runtime::{ByRuntime, Runtime},
        saved::SavedName,
        variables::Variables,
    },
    error_code::ErrorCode,
};

const LIMITS: SavedLimits =
    SavedLimits { per_owner: 10, bytes: 1 << 30, age: Duration::from_secs(3600), reserve: DiskReserve::from_mib(0) };

const EXPECTED: Expected = Expected { bytes: 0, callers: 1 };

/// Bytes of each of the two files of a test's machine.
const FILE_BYTES: usize = 20_000;

fn named(name: &str) -> SavedKey {
    SavedKey::Name(SavedName::parse(name).unwrap())
}

fn ada() -> Principal {
    "ada".parse().unwrap()
}

fn bob() -> Principal {
    "bob".parse().unwrap()
}

/// An about-file that contains a number, so that a test sees which of several entries it has found.
fn about(number: u32) -> SavedAbout {
    let id = EnvironmentId::random();
    SavedAbout {
        id,
        name: EnvironmentName::of(Runtime::Python, id),
        runtime: Runtime::Python,
        // References to registries take long to parse in each process of an unoptimized build.
        image: "oci:/images/python".parse().unwrap(),
        pull_rights: PullRights::Operator,
        created_at: SystemTime::now(),
        idle_timeout: Duration::from_secs(60),
        network: None,
        cpus: 1,
        memory_mib: 512,
        disk_mib: number,
        variables: Variables::default(),
        killed_installations: ByRuntime::default(),
    }
}

fn content(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(FILE_BYTES / 4)
}

fn fill(machine: &Path, number: u32) {
    for file in ["memory", "disk"] {
        fs::write(machine.join(file), content(number)).unwrap();
    }
}

/// The number in an entry, after a check that the entry is whole.
fn number(saved: &OpenSaved) -> u32 {
    let number = saved.entry().about.disk_mib;
    for file in ["memory", "disk"] {
        assert!(fs::read(saved.machine_folder().join(file)).unwrap() == content(number), "{file} of {number}");
    }
    number
}

async fn open(data: &TempDir) -> SavedMachines {
    SavedMachines::open(data.path(), LIMITS).await.unwrap()
}

async fn save(store: &SavedMachines, owner: &Principal, key: SavedKey, number: u32) -> Result<SavedEntry, SaveFault> {
    let draft = store.draft(owner, key, EXPECTED).await?;
    fill(draft.machine_folder(), number);
    draft.publish(about(number)).await
}

async fn saved_number(store: &SavedMachines, owner: &Principal, key: &SavedKey) -> Option<u32> {
    store.open_saved(owner, key).await.unwrap().map(|saved| number(&saved))
}

fn names(store: &SavedMachines, owner: &Principal) -> Vec<String> {
    store.list(owner).iter().map(|entry| entry.key.to_string()).collect()
}

fn folders(data: &TempDir) -> BTreeSet<String> {
    let entries = fs::read_dir(data.path().join(FOLDER)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".lock").collect()
}

/// Waits until the folder of the store has this number of entries and drafts.
async fn has_folders(data: &TempDir, count: usize) {
    let until = Instant::now() + Duration::from_secs(30);
    while folders(data).len() != count {
        assert!(Instant::now() < until, "{:?} are not {count}", folders(data));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn entries_survive_a_restart_and_belong_to_their_owners() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    let id = EnvironmentId::random();
    let first = save(&store, &ada(), named("first"), 1).await.unwrap();
    save(&store, &ada(), named("second"), 2).await.unwrap();
    save(&store, &bob(), named("first"), 3).await.unwrap();
    save(&store, &bob(), SavedKey::Suspended(id), 4).await.unwrap();
    assert!((2 * FILE_BYTES as u64..10 * FILE_BYTES as u64).contains(&first.bytes), "{}", first.bytes);
    let before = (store.list(&ada()), store.list(&bob()), store.suspended());
    let usage = SavedUsage::of(data.path()).unwrap();
    assert_eq!(usage.entries, 4);
    assert!(usage.bytes >= 4 * first.bytes, "{usage:?}");
    assert_eq!(SavedUsage::of(&data.path().join("missing")).unwrap(), SavedUsage::default());
    drop(store);

    let store = open(&data).await;
    assert_eq!((store.list(&ada()), store.list(&bob()), store.suspended()), before);
    assert_eq!(names(&store, &ada()), ["saved environment \"first\"", "saved environment \"second\""]);
    assert_eq!(store.find(&ada(), &named("first")), Some(first));
    assert_eq!(saved_number(&store, &ada(), &named("first")).await, Some(1));
    assert_eq!(saved_number(&store, &bob(), &named("first")).await, Some(3));
    assert_eq!(saved_number(&store, &bob(), &named("second")).await, None);
    assert!(!store.remove(&bob(), &named("second")).await.unwrap());
    assert_eq!(store.find(&ada(), &SavedKey::Suspended(id)), None);
    assert_eq!(saved_number(&store, &bob(), &SavedKey::Suspended(id)).await, Some(4));
    assert!(store.remove(&bob(), &SavedKey::Suspended(id)).await.unwrap());
    assert!(!store.remove(&bob(), &SavedKey::Suspended(id)).await.unwrap());
    has_folders(&data, 3).await;
}

#[tokio::test]
async fn replaced_and_removed_entries_exist_while_they_are_in_use() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    save(&store, &ada(), named("a"), 1).await.unwrap();
    let first = store.open_saved(&ada(), &named("a")).await.unwrap().unwrap();
    save(&store, &ada(), named("a"), 2).await.unwrap();
    assert_eq!(saved_number(&store, &ada(), &named("a")).await, Some(2));
    let second = store.open_saved(&ada(), &named("a")).await.unwrap().unwrap();
    assert!(store.remove(&ada(), &named("a")).await.unwrap());
    assert_eq!(names(&store, &ada()), [""; 0]);
    drop(store);
    assert_eq!((number(&first), number(&second)), (1, 2));
    // The store is in use as long as one of its entries, so that no other server deletes the files.
    assert!(matches!(open(&data).await.check(), Err(StoreFault::Held)));
    assert_eq!((number(&first), number(&second)), (1, 2));
    drop((first, second));
    has_folders(&data, 0).await;
    assert_eq!(names(&open(&data).await, &ada()), [""; 0]);
}

#[tokio::test]
async fn drafts_of_one_name_do_not_mix_and_dropped_drafts_are_removed() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    let (one, two) = (
        store.draft(&ada(), named("a"), EXPECTED).await.unwrap(),
        store.draft(&ada(), named("a"), EXPECTED).await.unwrap(),
    );
    let dropped = store.draft(&ada(), named("b"), EXPECTED).await.unwrap();
    fill(one.machine_folder(), 1);
    fill(two.machine_folder(), 2);
    fill(dropped.machine_folder(), 3);
    assert_eq!(names(&store, &ada()), [""; 0]);
    two.publish(about(2)).await.unwrap();
    assert_eq!(saved_number(&store, &ada(), &named("a")).await, Some(2));
    one.publish(about(1)).await.unwrap();
    assert_eq!(saved_number(&store, &ada(), &named("a")).await, Some(1));
    drop(dropped);
    has_folders(&data, 1).await;
    assert_eq!(store.list(&ada()).len(), 1);
}

#[tokio::test]
async fn number_of_an_owners_entries_is_limited() {
    let data = tempfile::tempdir().unwrap();
    let limits = SavedLimits { per_owner: 2, ..LIMITS };
    let store = SavedMachines::open(data.path(), limits).await.unwrap();
    let early = store.draft(&ada(), named("c"), EXPECTED).await.unwrap();
    for name in ["a", "b"] {
        save(&store, &ada(), named(name), 1).await.unwrap();
    }
    let fault = store.draft(&ada(), named("c"), EXPECTED).await.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "you have the maximum number of saved environments, 2 (WAGGLE_SAVED_PER_OWNER); remove one with \
         destroy_environment and its argument saved, or save under the name of one, which replaces it"
    );
    assert_eq!(fault.code(), ErrorCode::SavedLimitReached);
    fill(early.machine_folder(), 3);
    assert!(matches!(early.publish(about(3)).await, Err(SaveFault::TooMany { max: 2 })));
    // Other owners, replaced entries and suspended environments do not count.
    save(&store, &bob(), named("c"), 2).await.unwrap();
    save(&store, &ada(), named("b"), 2).await.unwrap();
    save(&store, &ada(), SavedKey::Suspended(EnvironmentId::random()), 2).await.unwrap();
    assert!(store.remove(&ada(), &named("a")).await.unwrap());
    save(&store, &ada(), named("c"), 3).await.unwrap();
    has_folders(&data, 4).await;
    drop(store);

    let disabled = SavedMachines::open(data.path(), SavedLimits { per_owner: 0, ..LIMITS }).await.unwrap();
    let fault = disabled.draft(&ada(), named("b"), EXPECTED).await.unwrap_err();
    assert_eq!((fault.code(), disabled.list(&ada()).len()), (ErrorCode::SavingUnavailable, 2));
    save(&disabled, &ada(), SavedKey::Suspended(EnvironmentId::random()), 2).await.unwrap();
}

#[tokio::test]
async fn space_of_all_entries_is_limited_to_what_they_occupy() {
    let data = tempfile::tempdir().unwrap();
    let probe = open(&data).await;
    let bytes = save(&probe, &ada(), named("a"), 1).await.unwrap().bytes;
    drop(probe);
    let store = SavedMachines::open(data.path(), SavedLimits { bytes: 2 * bytes, ..LIMITS }).await.unwrap();
    let sparse = store.draft(&bob(), named("b"), EXPECTED).await.unwrap();
    fill(sparse.machine_folder(), 2);
    // A hole occupies no space.
    let disk = fs::OpenOptions::new().write(true).open(sparse.machine_folder().join("disk")).unwrap();
    disk.set_len(1 << 40).unwrap();
    assert_eq!(sparse.publish(about(2)).await.unwrap().bytes, bytes);
    let fault = save(&store, &bob(), named("c"), 3).await.unwrap_err();
    assert_eq!(fault.code(), ErrorCode::SavedSpaceReached);
    assert!(matches!(fault, SaveFault::TooLarge { .. }), "{fault}");
    // Neither a replaced entry nor a suspended environment counts.
    save(&store, &ada(), named("a"), 4).await.unwrap();
    save(&store, &ada(), SavedKey::Suspended(EnvironmentId::random()), 5).await.unwrap();
    has_folders(&data, 3).await;
    let text = SaveFault::TooLarge { bytes: Some(5 << 29), max_bytes: 20 << 30 }.to_string();
    assert!(text.starts_with(
        "all saved environments of the server together may occupy at most 20 GiB (WAGGLE_SAVED_MAX_GB), and this one \
         of 2560 MiB does not fit"
    ));
}

#[tokio::test]
async fn full_space_is_reported_before_anything_is_written() {
    let data = tempfile::tempdir().unwrap();
    let probe = open(&data).await;
    let bytes = save(&probe, &ada(), named("a"), 1).await.unwrap().bytes;
    drop(probe);
    let store = SavedMachines::open(data.path(), SavedLimits { bytes, ..LIMITS }).await.unwrap();
    let fault = store.draft(&bob(), named("b"), EXPECTED).await.unwrap_err();
    assert!(matches!(fault, SaveFault::TooLarge { bytes: None, .. }), "{fault}");
    assert!(fault.to_string().contains("and they already occupy that much; remove"), "{fault}");
    assert_eq!(folders(&data).len(), 1);
    save(&store, &ada(), named("a"), 2).await.unwrap();
}

#[tokio::test]
async fn one_of_several_owners_may_use_half_of_the_space() {
    let data = tempfile::tempdir().unwrap();
    let probe = open(&data).await;
    let bytes = save(&probe, &ada(), named("a"), 1).await.unwrap().bytes;
    drop(probe);
    let store = SavedMachines::open(data.path(), SavedLimits { bytes: 3 * bytes, ..LIMITS }).await.unwrap();
    let of_two = Expected { callers: 2, ..EXPECTED };
    let draft = store.draft(&ada(), named("b"), of_two).await.unwrap();
    fill(draft.machine_folder(), 2);
    let fault = draft.publish(about(2)).await.unwrap_err();
    assert!(matches!(fault, SaveFault::ShareTooLarge { bytes: Some(_), .. }), "{fault}");
    assert!(fault.to_string().starts_with("your saved environments together may occupy at most"), "{fault}");
    assert_eq!(fault.code(), ErrorCode::SavedLimitReached);
    let draft = store.draft(&bob(), named("b"), of_two).await.unwrap();
    fill(draft.machine_folder(), 2);
    draft.publish(about(2)).await.unwrap();
    // A lone caller may use everything.
    save(&store, &ada(), named("b"), 3).await.unwrap();
}

#[tokio::test]
async fn drafts_count_against_the_reserve_with_the_bytes_that_they_expect() {
    let data = tempfile::tempdir().unwrap();
    let limits = SavedLimits { reserve: DiskReserve::from_mib(1), ..LIMITS };
    let store = SavedMachines::open(data.path(), limits).await.unwrap();
    let found = rustix::fs::statvfs(data.path()).unwrap();
    let most = Expected { bytes: found.f_bavail * found.f_frsize / 3 * 2, callers: 1 };
    let suspended = || SavedKey::Suspended(EnvironmentId::random());
    let first = store.draft(&ada(), suspended(), most).await.unwrap();
    let fault = store.draft(&ada(), suspended(), most).await.unwrap_err();
    assert_eq!(fault.code(), ErrorCode::HostDiskLow);
    assert!(fault.to_string().contains("MiB more are needed; see WAGGLE_DISK_RESERVE_MB"), "{fault}");
    drop(first);
    store.draft(&ada(), suspended(), most).await.unwrap();
}

#[test]
fn full_disk_is_found_among_the_causes() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(is_disk_full(&full()) && is_disk_full(&io_fault("write", Path::new("/a"))(full())));
    assert!(!is_disk_full(&std::io::Error::other("another")));
}

#[tokio::test]
async fn nothing_is_saved_below_the_reserve_of_the_disk() {
    let data = tempfile::tempdir().unwrap();
    let limits = SavedLimits { reserve: DiskReserve::from_mib(u32::MAX), ..LIMITS };
    let store = SavedMachines::open(data.path(), limits).await.unwrap();
    for key in [named("a"), SavedKey::Suspended(EnvironmentId::random())] {
        let fault = store.draft(&ada(), key, EXPECTED).await.unwrap_err();
        assert!(fault.to_string().contains("MiB must remain free; see WAGGLE_DISK_RESERVE_MB"), "{fault}");
        assert_eq!(fault.code(), ErrorCode::HostDiskLow);
    }
    assert_eq!(folders(&data), BTreeSet::new());
}

#[tokio::test]
async fn second_server_refuses_to_save_until_the_first_has_ended() {
    let data = tempfile::tempdir().unwrap();
    let first = open(&data).await;
    save(&first, &ada(), named("a"), 1).await.unwrap();
    let unfinished = first.draft(&ada(), named("b"), EXPECTED).await.unwrap();
    let second = open(&data).await;
    let refusal = second.check().unwrap_err();
    assert!(refusal.to_string().contains("another server holds those of the same data folder"), "{refusal}");
    assert_eq!(refusal.code(), ErrorCode::SavingUnavailable);
    assert_eq!(second.draft(&ada(), named("a"), EXPECTED).await.unwrap_err().code(), ErrorCode::SavingUnavailable);
    assert!(matches!(second.open_saved(&ada(), &named("a")).await, Err(StoreFault::Held)));
    assert!(matches!(second.remove(&ada(), &named("a")).await, Err(StoreFault::Held)));
    assert_eq!((second.list(&ada()), second.expire().await), (Vec::new(), Vec::new()));
    assert!(unfinished.machine_folder().exists());
    drop((first, unfinished));
    assert_eq!(saved_number(&open(&data).await, &ada(), &named("a")).await, Some(1));
}

#[tokio::test]
async fn old_entries_expire_and_a_clock_that_was_set_back_removes_none() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    let id = EnvironmentId::random();
    let entry = save(&store, &ada(), named("a"), 1).await.unwrap();
    save(&store, &ada(), SavedKey::Suspended(id), 2).await.unwrap();
    assert_eq!(store.expire().await, []);
    let inner = store.store.clone().unwrap();
    assert_eq!(inner.expire(entry.saved_at - 2 * LIMITS.age), []);
    assert_eq!(inner.expire(entry.saved_at + LIMITS.age), []);
    let expired = inner.expire(entry.saved_at + 2 * LIMITS.age);
    let keys: BTreeSet<_> = expired.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, BTreeSet::from([named("a"), SavedKey::Suspended(id)]));
    assert_eq!((store.list(&ada()), store.suspended()), (Vec::new(), Vec::new()));
    has_folders(&data, 0).await;
}

#[tokio::test]
async fn damaged_entries_are_kept_and_not_served() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    for name in ["cut", "changed", "newer", "machine", "whole", "aside"] {
        save(&store, &ada(), named(name), 1).await.unwrap();
    }
    let path = |name: &str| store.store.as_ref().unwrap().find(&ada(), &named(name)).unwrap().folder.path().to_owned();
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let about = path(name).join("about");
        let mut content = fs::read(&about).unwrap();
        change(&mut content);
        fs::write(&about, content).unwrap();
    };
    change("cut", &|content| content.truncate(content.len() - 1));
    change("changed", &|content| *content.last_mut().unwrap() ^= 1);
    change("newer", &|content| content["waggle-saved ".len()] = b'9');
    fs::rename(path("machine").join("machine"), path("machine").join("elsewhere")).unwrap();
    let replaced = store.open_saved(&ada(), &named("aside")).await.unwrap().unwrap();
    save(&store, &ada(), named("aside"), 2).await.unwrap();
    assert!(!store.set_aside(&replaced).await.unwrap());
    drop(replaced);
    let damaged = store.open_saved(&ada(), &named("aside")).await.unwrap().unwrap();
    assert!(store.set_aside(&damaged).await.unwrap());
    assert!(!store.set_aside(&damaged).await.unwrap());
    drop(damaged);
    has_folders(&data, 6).await;
    assert_eq!(store.list(&ada()).len(), 5);
    drop(store);
    for _ in 0..2 {
        let store = open(&data).await;
        assert_eq!(names(&store, &ada()), ["saved environment \"whole\""]);
        assert_eq!(saved_number(&store, &ada(), &named("whole")).await, Some(1));
        assert_eq!(folders(&data).len(), 6);
    }
}

#[tokio::test]
async fn folders_and_files_are_private_and_only_of_these_kinds() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    let draft = store.draft(&ada(), named("a"), EXPECTED).await.unwrap();
    fill(draft.machine_folder(), 1);
    fs::create_dir(draft.machine_folder().join("more")).unwrap();
    fs::write(draft.machine_folder().join("more/file"), "x").unwrap();
    for (path, mode) in [("more", 0o755), ("more/file", 0o644), ("memory", 0o666)] {
        fs::set_permissions(draft.machine_folder().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    draft.publish(about(1)).await.unwrap();
    let saved = store.open_saved(&ada(), &named("a")).await.unwrap().unwrap();
    let machine = saved.machine_folder();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in [machine.to_owned(), machine.join("more"), machine.join(".."), machine.join("../..")] {
        assert_eq!(mode(folder), 0o700);
    }
    for file in ["memory", "disk", "more/file", "../about"] {
        assert_eq!(mode(machine.join(file)), 0o600, "{file}");
    }

    let link = store.draft(&ada(), named("link"), EXPECTED).await.unwrap();
    symlink("/etc/passwd", link.machine_folder().join("disk")).unwrap();
    let fault = link.publish(about(2)).await.unwrap_err();
    assert!(fault.to_string().contains("one is neither a file nor a folder"), "{}", chain(&fault));
    let many = store.draft(&ada(), named("many"), EXPECTED).await.unwrap();
    for file in 0..300 {
        fs::write(many.machine_folder().join(file.to_string()), "").unwrap();
    }
    assert!(many.publish(about(3)).await.unwrap_err().to_string().contains("there are too many"));
    has_folders(&data, 1).await;
}

#[tokio::test]
async fn publish_flushes_everything_before_the_rename_and_the_folder_after_it() {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data).await;
    save(&store, &ada(), named("a"), 1).await.unwrap();
    let folder = data.path().join(FOLDER);
    changes::recording::take(&folder);
    save(&store, &ada(), named("a"), 2).await.unwrap();
    let changes = changes::recording::take(&folder);
    let at = |change: &str, end: &str, from: usize| {
        let found = changes[from..].iter().position(|(found, path)| *found == change && path.ends_with(end));
        from + found.unwrap_or_else(|| panic!("no {change} of {end} after {from} in {changes:?}"))
    };
    let rename =
        changes.iter().position(|(change, path)| *change == "rename" && path.components().count() == 1).unwrap();
    let draft = changes[0].1.display().to_string();
    for end in ["machine/memory", "machine/disk", "machine", "about", &draft] {
        assert!(at("sync", end, 0) < rename, "{end} in {changes:?}");
    }
    assert!(at("write", "about", 0) < at("sync", "about", 0));
    assert_eq!(changes[rename + 1], ("sync", PathBuf::new()), "{changes:?}");
    // The earlier entry is marked only when the new one is on the disk.
    assert!(at("rename", "about.removed", 0) > rename + 1);
}
