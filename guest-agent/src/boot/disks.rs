// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Mounts the two disks that form the root: the image, and the scratch disk over it.

use std::{ffi::CStr, fs, path::Path, thread::sleep, time::Duration};

use nix::mount::{MsFlags, mount};

use crate::step::{StepFault, WithStep};

/// The mount point of the overlay.
pub(super) const NEW_ROOT: &str = "/root";

/// The disks, in the order in which every VM back end attaches them.
const IMAGE_DISK: &str = "/dev/vda";
const SCRATCH_DISK: &str = "/dev/vdb";

/// Delay between two checks for a disk. The kernel may start PID 1 before it has found all disks.
const DISK_RETRY: Duration = Duration::from_millis(2);

/// Maximum number of checks for a disk; together they take about 5 s. After the last check, the mount is tried anyway.
const DISK_TRIES: u32 = 2500;

/// Mounts the image and the scratch disk, and an overlay of both at [`NEW_ROOT`].
pub(super) fn mount_root() -> Result<(), StepFault> {
    mount_disk(IMAGE_DISK, "/image", c"erofs", MsFlags::MS_RDONLY)?;
    mount_disk(SCRATCH_DISK, "/scratch", c"ext4", MsFlags::MS_NOATIME)?;
    for folder in ["/scratch/upper", "/scratch/work", NEW_ROOT] {
        fs::create_dir_all(folder).step(|| format!("create {folder}"))?;
    }
    let layers = "lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work";
    mount(Some("overlay"), NEW_ROOT, Some(c"overlay"), MsFlags::MS_NODEV | MsFlags::MS_NOATIME, Some(layers))
        .step(|| format!("mount the overlay at {NEW_ROOT}"))
}

fn mount_disk(disk: &str, folder: &str, file_system: &CStr, flags: MsFlags) -> Result<(), StepFault> {
    fs::create_dir_all(folder).step(|| format!("create {folder}"))?;
    for _ in 0..DISK_TRIES {
        if Path::new(disk).exists() {
            break;
        }
        sleep(DISK_RETRY);
    }
    mount(Some(disk), folder, Some(file_system), flags | MsFlags::MS_NODEV, None::<&str>)
        .step(|| format!("mount {disk} as {} at {folder}", file_system.to_string_lossy()))
}
