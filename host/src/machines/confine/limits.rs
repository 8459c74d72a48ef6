// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Resource limits of a VMM. They bound what it can take from the host after a guest has taken it over, even if the
//! operator limits the server by no control group.

use std::io;

use rustix::{
    process::{Resource, Rlimit, setrlimit},
    system::uname,
};

use super::Namespaces;

/// Maximum number of open files. A machine needs about 60.
const OPEN_FILES_MAX: u64 = 256;
/// Maximum size of the VMM's address space in MiB, beyond the guest's memory. QEMU has up to 80 threads with stacks
/// of 8 MiB, 320 coroutines with stacks of 1 MiB, 64 MiB of translated code, two heaps of 128 MiB and 200 MiB of
/// libraries.
const OVERHEAD_MIB: u64 = 2048;
/// Maximum number of threads and processes, including the runner. QEMU has at most 16 virtual CPUs, 64 threads that
/// read and write its disks, and a few more.
const THREADS_MAX: u64 = 128;
/// The first version of Linux in which a user namespace counts its processes on its own.
const COUNTS_PER_NAMESPACE: (u32, u32) = (5, 14);
const MIB: u64 = 1 << 20;

/// The sizes that the limits of one VMM depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) memory_mib: u32,
    pub(crate) disk_bytes: u64,
}

impl Limits {
    /// Sets the limits on this process permanently.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn set(self, namespaces: Namespaces) -> io::Result<()> {
        let set = |resource, limit| setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) });
        let memory = u64::from(self.memory_mib) * MIB;
        // A core dump would write the memory of a crashed machine to the host's disk.
        set(Resource::Core, 0)?;
        set(Resource::Nofile, OPEN_FILES_MAX)?;
        // The host could not reclaim locked memory from a guest.
        set(Resource::Memlock, 0)?;
        set(Resource::Msgqueue, 0)?;
        set(Resource::Fsize, self.disk_bytes)?;
        set(Resource::As, memory + OVERHEAD_MIB * MIB)?;
        // Elsewhere, the kernel counts all processes of the server's user, whose number is unknown.
        if namespaces == Namespaces::Own && kernel_version().is_some_and(|version| version >= COUNTS_PER_NAMESPACE) {
            set(Resource::Nproc, THREADS_MAX)?;
        }
        Ok(())
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    version(uname().release().to_str().ok()?)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn release_names_of_distributions_are_read() {
        for (release, expected) in [
            ("6.1.0-44-amd64", Some((6, 1))),
            ("5.14.0-503.el9.x86_64", Some((5, 14))),
            ("7.0-rc1", Some((7, 0))),
            ("unknown", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
