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

/// The journal protects only the metadata: the disk is never mounted again after a crash of the machine, so the order
/// in which data and metadata reach it does not matter. The kernel writes no zeros to inode tables, because those of a
/// new disk are holes in the host's file, which read as zeros.
const SCRATCH_OPTIONS: &str = "data=writeback,noinit_itable";

/// Options that make the overlay behave like one file system: `xino` gives files and folders of both disks inode
/// numbers from one range and one device number; `redirect_dir` allows folders of the image to be renamed; with
/// `index`, the names of a file of the image still lead to one file after a write to it.
const OVERLAY_OPTIONS: &str = "xino=on,redirect_dir=on,index=on";

/// Delay between two checks for a disk. The kernel may start PID 1 before it has found all disks.
const DISK_RETRY: Duration = Duration::from_millis(2);

/// Maximum number of checks for a disk; together they take about 5 s. After the last check, the mount is tried anyway.
const DISK_TRIES: u32 = 2500;

/// Mounts the image and the scratch disk, and an overlay of both at [`NEW_ROOT`].
pub(super) fn mount_root() -> Result<(), StepFault> {
    mount_disk(IMAGE_DISK, "/image", c"erofs", MsFlags::MS_RDONLY, "")?;
    mount_disk(SCRATCH_DISK, "/scratch", c"ext4", MsFlags::MS_NOATIME, SCRATCH_OPTIONS)?;
    for folder in ["/scratch/upper", "/scratch/work", NEW_ROOT] {
        fs::create_dir_all(folder).step(|| format!("create {folder}"))?;
    }
    let options = format!("lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work,{OVERLAY_OPTIONS}");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some("overlay"), NEW_ROOT, Some(c"overlay"), flags, Some(options.as_str()))
        .step(|| format!("mount the overlay at {NEW_ROOT}"))
}

fn mount_disk(disk: &str, folder: &str, file_system: &CStr, flags: MsFlags, options: &str) -> Result<(), StepFault> {
    fs::create_dir_all(folder).step(|| format!("create {folder}"))?;
    for _ in 0..DISK_TRIES {
        if Path::new(disk).exists() {
            break;
        }
        sleep(DISK_RETRY);
    }
    mount(Some(disk), folder, Some(file_system), flags | MsFlags::MS_NODEV, Some(options))
        .step(|| format!("mount {disk} as {} at {folder}", file_system.to_string_lossy()))
}
