// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Fixes for failed checks, for three distributions.

use crate::machines::CheckOutcome;

/// A fix, as a command for each distribution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Fix {
    pub(super) debian: &'static str,
    pub(super) fedora: &'static str,
    pub(super) arch: &'static str,
}

impl Fix {
    const fn everywhere(command: &'static str) -> Self {
        Self { debian: command, fedora: command, arch: command }
    }
}

/// Returns the fix for a check, or `None` if the check succeeded or its fix is unknown.
pub(super) fn fix(name: &str, outcome: &CheckOutcome) -> Option<Fix> {
    let broken = match outcome {
        CheckOutcome::Works(_) => return None,
        CheckOutcome::Missing(_) => false,
        CheckOutcome::Broken(_) => true,
    };
    Some(match name {
        "guest agent" => Fix::everywhere("./taskw build, in waggle's source tree"),
        "KVM device" if broken => Fix::everywhere("usermod -aG kvm $USER, and log in again"),
        "KVM device" => Fix::everywhere(
            "modprobe kvm_intel or kvm_amd; enable virtualisation in the firmware, or nested virtualisation on the \
             host of a virtual machine",
        ),
        "KVM guests" => Fix::everywhere("fix the KVM device; the host of a virtual machine must allow nested guests"),
        "libkrunfw" => Fix {
            debian: "run ./taskw firmware in waggle's source tree and set WAGGLE_FIRMWARE to its result (for libkrun, \
                     apt-get install libkrunfw5 in Debian 14 works too; its kernel does not work with QEMU)",
            fedora: "dnf install libkrunfw",
            arch: "pacman -S libkrunfw",
        },
        "QEMU" => Fix {
            debian: "apt-get install qemu-system-x86",
            fedora: "dnf install qemu-system-x86-core",
            arch: "pacman -S qemu-base",
        },
        "guest kernel" => Fix::everywhere(
            "run ./taskw firmware in waggle's source tree, set WAGGLE_FIRMWARE to its result and unset WAGGLE_KERNEL",
        ),
        "mkfs.ext4" => {
            Fix { debian: "apt-get install e2fsprogs", fedora: "dnf install e2fsprogs", arch: "pacman -S e2fsprogs" }
        }
        "user namespaces" => Fix {
            debian: "sysctl -w kernel.unprivileged_userns_clone=1; on Ubuntu \
                     kernel.apparmor_restrict_unprivileged_userns=0",
            fedora: "sysctl -w user.max_user_namespaces=15000",
            arch: "sysctl -w kernel.unprivileged_userns_clone=1",
        },
        "control group" => Fix::everywhere(
            "run systemd-run --user --scope -p Delegate=yes waggle serve, or start waggle's systemd unit",
        ),
        "data folder" => Fix::everywhere(
            "free disk space or chown the folder, set another one with WAGGLE_DATA_DIR, or lower \
                 WAGGLE_DISK_RESERVE_MB",
        ),
        "image folder" => Fix::everywhere(
            "free disk space or chown the folder, set another one with WAGGLE_IMAGE_CACHE_DIR, or lower \
                 WAGGLE_DISK_RESERVE_MB",
        ),
        "saved environments" => Fix::everywhere("chown the folder saved in the data folder"),
        "memory of all" => Fix::everywhere("lower WAGGLE_MAX_ENVIRONMENTS or WAGGLE_MAX_MEMORY_MB"),
        "memory" => Fix::everywhere("end other programs, or lower WAGGLE_DEFAULT_MEMORY_MB"),
        "image python" => Fix::everywhere(
            "run ./taskw images and set WAGGLE_IMAGE_PYTHON=oci:target/images/python, or set another image",
        ),
        "image node" => {
            Fix::everywhere("run ./taskw images and set WAGGLE_IMAGE_NODE=oci:target/images/node, or set another image")
        }
        "image shell" => Fix::everywhere(
            "run ./taskw images and set WAGGLE_IMAGE_SHELL=oci:target/images/shell, or set another image",
        ),
        _ => return None,
    })
}
