// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The kernel's modules, and the two disks that become the root: the image, and scratch space over it.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    path::Path,
    thread::sleep,
    time::Duration,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};

use super::{BootFault, Step};

/// Where the overlay is put together.
pub(super) const NEW_ROOT: &str = "/root";

/// The disks, in the order in which every back end attaches them.
const IMAGE_DISK: &str = "/dev/vda";
const SCRATCH_DISK: &str = "/dev/vdb";

/// A disk appears a moment after its driver was loaded.
const DISK_RETRY: Duration = Duration::from_millis(2);

/// Tries for a disk before the boot fails: 5 s.
const DISK_TRIES: u32 = 2500;

/// Loads the kernel modules in their order. One that is loaded already is fine.
pub(super) fn load_modules(paths: &[String]) -> Result<(), BootFault> {
    for path in paths {
        let load = || -> io::Result<()> {
            match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        };
        load().step(|| format!("load the kernel module {path}"))?;
    }
    Ok(())
}

/// Mounts the image below the scratch disk and puts both together at [`NEW_ROOT`].
pub(super) fn mount_root() -> Result<(), BootFault> {
    mount_disk(IMAGE_DISK, "/image", c"erofs", MsFlags::MS_RDONLY)?;
    mount_disk(SCRATCH_DISK, "/scratch", c"ext4", MsFlags::MS_NOATIME)?;
    for folder in ["/scratch/upper", "/scratch/work", NEW_ROOT] {
        fs::create_dir_all(folder).step(|| format!("make {folder}"))?;
    }
    let layers = "lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work";
    mount(Some("overlay"), NEW_ROOT, Some(c"overlay"), MsFlags::MS_NODEV | MsFlags::MS_NOATIME, Some(layers))
        .step(|| format!("mount the overlay at {NEW_ROOT}"))
}

fn mount_disk(disk: &str, place: &str, file_system: &CStr, flags: MsFlags) -> Result<(), BootFault> {
    fs::create_dir_all(place).step(|| format!("make {place}"))?;
    for _ in 0..DISK_TRIES {
        if Path::new(disk).exists() {
            break;
        }
        sleep(DISK_RETRY);
    }
    mount(Some(disk), place, Some(file_system), flags | MsFlags::MS_NODEV, None::<&str>)
        .step(|| format!("mount {disk} as {} at {place}", file_system.to_string_lossy()))
}
