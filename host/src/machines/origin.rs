// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The programs and the host that saved a machine. Only the same programs, on the same host since the same boot, can
//! continue with its memory.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// See the module's documentation.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Origin {
    /// The version of this program.
    program: String,
    /// The digest of the agent that this program contains.
    agent: String,
    vmm: String,
    kernel: String,
    processor: String,
    /// The id of the host's boot.
    boot: String,
}

impl Origin {
    /// Describes this program and this host. `accelerator` is how the VMM executes the guest's instructions.
    pub(super) fn of(vmm: &Path, accelerator: &str, kernel: &Path, agent: &[u8]) -> Self {
        Self {
            program: format!("{} {}", env!("CARGO_PKG_VERSION"), env!("WAGGLE_COMMIT")),
            agent: format!("{:x}", Sha256::digest(agent)),
            vmm: format!("{} {accelerator}", file(vmm)),
            kernel: file(kernel),
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        }
    }

    /// Returns why a machine of this origin cannot continue with its memory at `other`; `None` if it can.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.boot != other.boot, "the host was restarted"),
            (self.processor != other.processor, "the host has another processor"),
            (self.program != other.program || self.agent != other.agent, "waggle is another version"),
            (self.vmm != other.vmm, "the virtual machine monitor is another one, or another version"),
            (self.kernel != other.kernel, "the guests' kernel is another one"),
        ]
        .into_iter()
        .find_map(|(differs, reason)| differs.then_some(reason))
    }
}

/// Identifies a version of a file.
fn file(path: &Path) -> String {
    let about = path.metadata().map(|found| format!("{} {}.{}", found.len(), found.mtime(), found.mtime_nsec()));
    format!("{} {}", path.display(), about.unwrap_or_default())
}

/// Identifies the first processor by what it can do. Other lines of `/proc/cpuinfo` change all the time.
fn processor(cpuinfo: &str) -> String {
    let lasting = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];
    let lines = cpuinfo.split("\n\n").next().unwrap_or_default().lines();
    let lines = lines.filter(|line| line.split(':').next().is_some_and(|name| lasting.contains(&name.trim())));
    format!("{:x}", Sha256::digest(lines.collect::<Vec<_>>().join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_decides() {
        let own = Origin::default();
        assert_eq!(own.difference(&own), None);
        for (other, reason) in [
            (Origin { boot: "other".into(), program: "other".into(), ..Origin::default() }, "the host was restarted"),
            (Origin { agent: "other".into(), ..Origin::default() }, "waggle is another version"),
            (Origin { program: "other".into(), ..Origin::default() }, "waggle is another version"),
            (
                Origin { vmm: "other".into(), ..Origin::default() },
                "the virtual machine monitor is another one, or another version",
            ),
            (Origin { kernel: "other".into(), ..Origin::default() }, "the guests' kernel is another one"),
            (Origin { processor: "other".into(), ..Origin::default() }, "the host has another processor"),
        ] {
            assert_eq!(own.difference(&other), Some(reason));
        }
    }

    #[test]
    fn processor_is_the_same_at_another_frequency() {
        let of = |mhz, flags| {
            processor(&format!("model name\t: A\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nmodel name\t: B\n"))
        };
        assert_eq!(of("1000.1", "fpu sse2"), of("2000.2", "fpu sse2"));
        assert_ne!(of("1000.1", "fpu sse2"), of("1000.1", "fpu"));
    }
}
