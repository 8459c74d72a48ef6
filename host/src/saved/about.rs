// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The about-file of a saved machine: everything except the machine that is needed to make its environment again.
//!
//! The file is one line with the format's version and the digest of the rest, and then the rest as JSON.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use waggle_images::reference::{ImageRef, PullRights};

use crate::domain::{
    egress::Policy,
    environment::EnvironmentName,
    environment_id::EnvironmentId,
    principal::Principal,
    runtime::{ByRuntime, KilledInstallation, Runtime},
    saved::{SavedKey, SavedName},
    variables::Variables,
};

/// Maximum bytes of an about-file. The variables have at most 64 KiB, which JSON can write with six times the bytes.
pub(super) const ABOUT_BYTES_MAX: usize = 1024 * 1024;

/// The version of the format. A program does not read the files of newer versions.
const FORMAT: u32 = 1;

const TITLE: &str = "waggle-saved";

/// The parameters of a saved environment, which its machine's files do not contain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedAbout {
    /// The id of the environment that was saved.
    pub id: EnvironmentId,
    /// The environment's own name, which may differ from the name under which it is saved.
    pub name: EnvironmentName,
    /// The default language and package manager.
    pub runtime: Runtime,
    /// The image of the root file system.
    pub image: ImageRef,
    /// The rights with which the image was pulled.
    pub pull_rights: PullRights,
    /// The time of the request to create the environment.
    pub created_at: SystemTime,
    /// The time without a call after which the environment is idle.
    pub idle_timeout: Duration,
    /// The environment's own network policy.
    pub network: Option<Policy>,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the scratch disk in MiB.
    pub disk_mib: u32,
    /// The variables of all calls of the environment.
    pub variables: Variables,
    /// The killed installations that have not been repaired.
    pub killed_installations: ByRuntime<Option<KilledInstallation>>,
}

/// A saved machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedEntry {
    pub key: SavedKey,
    pub owner: Principal,
    pub about: SavedAbout,
    pub saved_at: SystemTime,
    /// The space that the files occupy on the disk; blocks that files share count for each.
    pub bytes: u64,
}

/// An about-file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum AboutFault {
    #[error("the file has more than {ABOUT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the file has no valid first line")]
    Title,
    /// Only a newer program can read the file.
    #[error("the file has version {found} of its format; this program reads versions up to {FORMAT}")]
    Newer { found: u32 },
    #[error("the file's digest does not match its content")]
    Digest,
    #[error("the file's content is invalid")]
    Json(#[source] serde_json::Error),
    #[error("the value of {field} is invalid")]
    Value { field: &'static str },
}

/// The content of an about-file, in types that have no rules of their own.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// The place of the entry in the order of all entries. If two entries have one key, the later replaced the earlier.
    serial: u64,
    owner: String,
    key: KeyRecord,
    saved_at: SystemTime,
    id: String,
    name: String,
    runtime: String,
    image: String,
    /// Whether the image is one that a client may choose from public registries, pulled without the operator's rights.
    has_public_image: bool,
    created_at: SystemTime,
    idle_timeout: Duration,
    network: Option<String>,
    cpus: u32,
    memory_mib: u32,
    disk_mib: u32,
    variables: BTreeMap<String, String>,
    /// The beginning and the end of a killed installation, by the runtime whose packages it installed.
    #[serde(default)]
    killed_installations: BTreeMap<String, (SystemTime, SystemTime)>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum KeyRecord {
    Name(String),
    Suspended(String),
}

/// Returns the content of the about-file.
pub(super) fn encode(entry: &SavedEntry, serial: u64) -> Result<Vec<u8>, AboutFault> {
    let about = &entry.about;
    let record = Record {
        serial,
        owner: entry.owner.to_string(),
        key: match &entry.key {
            SavedKey::Name(name) => KeyRecord::Name(name.as_str().to_owned()),
            SavedKey::Suspended(id) => KeyRecord::Suspended(id.to_string()),
        },
        saved_at: entry.saved_at,
        id: about.id.to_string(),
        name: about.name.as_str().to_owned(),
        runtime: about.runtime.name().to_owned(),
        image: about.image.to_string(),
        has_public_image: about.pull_rights == PullRights::Public,
        created_at: about.created_at,
        idle_timeout: about.idle_timeout,
        network: about.network.as_ref().map(ToString::to_string),
        cpus: about.cpus,
        memory_mib: about.memory_mib,
        disk_mib: about.disk_mib,
        variables: about.variables.pairs().iter().cloned().collect(),
        killed_installations: Runtime::ALL.into_iter().filter_map(|runtime| killed(about, runtime)).collect(),
    };
    let json = serde_json::to_vec(&record).map_err(AboutFault::Json)?;
    let mut file = format!("{TITLE} {FORMAT} {}\n", digest(&json)).into_bytes();
    file.extend(json);
    if file.len() > ABOUT_BYTES_MAX { Err(AboutFault::TooLong) } else { Ok(file) }
}

fn killed(about: &SavedAbout, runtime: Runtime) -> Option<(String, (SystemTime, SystemTime))> {
    let killed = about.killed_installations.of(runtime).as_ref()?;
    Some((runtime.name().to_owned(), (killed.began, killed.ended)))
}

/// Returns the entry of an about-file and its serial number. The caller adds the bytes that the files occupy.
pub(super) fn decode(file: &[u8]) -> Result<(SavedEntry, u64), AboutFault> {
    if file.len() > ABOUT_BYTES_MAX {
        return Err(AboutFault::TooLong);
    }
    let end = file.iter().position(|byte| *byte == b'\n').ok_or(AboutFault::Title)?;
    let (title, json) = file.split_at_checked(end).ok_or(AboutFault::Title)?;
    let json = json.strip_prefix(b"\n").unwrap_or(json);
    let words: Vec<_> = std::str::from_utf8(title).map_err(|_| AboutFault::Title)?.split(' ').collect();
    let [TITLE, format, expected] = words.as_slice() else { return Err(AboutFault::Title) };
    match format.parse() {
        Ok(FORMAT) => {}
        Ok(found) if found > FORMAT => return Err(AboutFault::Newer { found }),
        Ok(_) | Err(_) => return Err(AboutFault::Title),
    }
    if digest(json) != *expected {
        return Err(AboutFault::Digest);
    }
    let record: Record = serde_json::from_slice(json).map_err(AboutFault::Json)?;
    let serial = record.serial;
    record.entry().map(|entry| (entry, serial))
}

fn digest(json: &[u8]) -> String {
    format!("{:x}", Sha256::digest(json))
}

impl Record {
    fn entry(self) -> Result<SavedEntry, AboutFault> {
        let invalid = |field| AboutFault::Value { field };
        let id = |text: &str, field| text.parse().map_err(|_| invalid(field));
        let key = match &self.key {
            KeyRecord::Name(name) => SavedKey::Name(SavedName::parse(name).map_err(|_| invalid("key"))?),
            KeyRecord::Suspended(text) => SavedKey::Suspended(id(text, "key")?),
        };
        let runtime_of = |name: &str| Runtime::ALL.into_iter().find(|runtime| runtime.name() == name);
        let runtime = runtime_of(&self.runtime);
        let mut killed_installations = ByRuntime::default();
        for (name, (began, ended)) in self.killed_installations {
            let runtime = runtime_of(&name).ok_or(invalid("killed_installations"))?;
            *killed_installations.of_mut(runtime) = Some(KilledInstallation { began, ended });
        }
        let network = self.network.map(|rules| rules.parse().map_err(|_| invalid("network"))).transpose()?;
        let about = SavedAbout {
            id: id(&self.id, "id")?,
            name: EnvironmentName::parse(&self.name).map_err(|_| invalid("name"))?,
            runtime: runtime.ok_or(invalid("runtime"))?,
            image: self.image.parse().map_err(|_| invalid("image"))?,
            pull_rights: if self.has_public_image { PullRights::Public } else { PullRights::Operator },
            created_at: self.created_at,
            idle_timeout: self.idle_timeout,
            network,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            variables: Variables::parse(self.variables).map_err(|_| invalid("variables"))?,
            killed_installations,
        };
        let owner = Principal::stored(&self.owner).ok_or(invalid("owner"))?;
        Ok(SavedEntry { key, owner, about, saved_at: self.saved_at, bytes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owner: Principal, network: Option<&str>) -> SavedEntry {
        let variables = [("A".to_owned(), "b\n\"ä\"".to_owned())].into_iter().collect();
        let id = EnvironmentId::random();
        let about = SavedAbout {
            id,
            name: EnvironmentName::of(Runtime::Node, id),
            runtime: Runtime::Node,
            image: "registry.example/a/b:1".parse().unwrap(),
            pull_rights: PullRights::Public,
            created_at: SystemTime::now(),
            idle_timeout: Duration::from_millis(61_234),
            network: network.map(|rules| rules.parse().unwrap()),
            cpus: 3,
            memory_mib: 700,
            disk_mib: 5000,
            variables: Variables::parse(variables).unwrap(),
            killed_installations: ByRuntime::default(),
        };
        SavedEntry { key: SavedKey::Suspended(id), owner, about, saved_at: SystemTime::now(), bytes: 0 }
    }

    #[test]
    fn about_file_survives_a_round_trip() {
        let rules = "deny *.a.example, b.example:80-90, 192.0.2.0/24:5, [2001:db8::/32]:7, 2001:db8::1, public:443";
        for network in [None, Some("none"), Some("public"), Some(rules)] {
            for owner in [Principal::anonymous(), Principal::local(), "ada@example.org".parse().unwrap()] {
                let entry = entry(owner, network);
                assert_eq!(decode(&encode(&entry, 7).unwrap()).unwrap(), (entry, 7));
            }
        }
        let mut named = entry(Principal::anonymous(), None);
        named.key = SavedKey::Name(SavedName::parse("my \"data\"").unwrap());
        named.about.image = "oci:/images/python:3.13".parse().unwrap();
        named.about.pull_rights = PullRights::Operator;
        let (began, ended) = (SystemTime::now(), SystemTime::now());
        named.about.killed_installations.shell = Some(KilledInstallation { began, ended });
        assert_eq!(decode(&encode(&named, 0).unwrap()).unwrap(), (named, 0));
    }

    #[test]
    fn largest_parameters_fit_into_the_file() {
        let mut large = entry(Principal::anonymous(), None);
        let value = "\u{1}".repeat(crate::domain::variables::VARIABLES_BYTES_MAX - 1);
        large.about.variables = Variables::parse([("A".to_owned(), value)].into_iter().collect()).unwrap();
        let rules = vec![format!("{}.example:1-65535", "a".repeat(60)); crate::domain::egress::RULES_MAX].join(",");
        large.about.network = Some(rules.parse().unwrap());
        assert_eq!(decode(&encode(&large, u64::MAX).unwrap()).unwrap(), (large, u64::MAX));
    }

    #[test]
    fn changed_and_cut_files_are_rejected() {
        let file = encode(&entry(Principal::anonymous(), Some("public")), 1).unwrap();
        for at in 0..file.len() {
            assert!(decode(&file[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(decode(&[file.as_slice(), b" "].concat()).is_err());
        assert!(matches!(decode(&vec![b'\n'; ABOUT_BYTES_MAX + 1]), Err(AboutFault::TooLong)));
        assert!(matches!(decode(b"waggle-saved 2 00\n{}"), Err(AboutFault::Newer { found: 2 })));
    }
}
