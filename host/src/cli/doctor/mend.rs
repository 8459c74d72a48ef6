// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What mends what the doctor found, on the distributions whose users are most likely to ask.

use crate::machines::Look;

/// The same thing for three distributions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mend {
    pub(super) debian: &'static str,
    pub(super) fedora: &'static str,
    pub(super) arch: &'static str,
}

impl Mend {
    const fn everywhere(command: &'static str) -> Self {
        Self { debian: command, fedora: command, arch: command }
    }
}

/// The mend for a check that was found like this.
pub(super) fn mend(name: &str, look: &Look) -> Option<Mend> {
    let broken = match look {
        Look::Works(_) => return None,
        Look::Missing(_) => false,
        Look::Broken(_) => true,
    };
    Some(match name {
        "guest agent" => Mend::everywhere("./taskw build, in waggle's source tree"),
        "KVM device" if broken => Mend::everywhere("usermod -aG kvm $USER, and log in again"),
        "KVM device" => Mend::everywhere(
            "modprobe kvm_intel or kvm_amd; switch virtualisation on in the firmware, or for a virtual machine nested \
             virtualisation on its host",
        ),
        "KVM guests" => Mend::everywhere("mend the KVM device; a virtual machine's host has to nest guests"),
        "libkrunfw" => Mend {
            debian: "apt-get install libkrunfw5 (Debian 14), or ./taskw firmware and WAGGLE_FIRMWARE",
            fedora: "dnf install libkrunfw",
            arch: "pacman -S libkrunfw",
        },
        "QEMU" => Mend {
            debian: "apt-get install qemu-system-x86",
            fedora: "dnf install qemu-system-x86-core",
            arch: "pacman -S qemu-base",
        },
        "vhost-device-vsock" => Mend::everywhere("cargo install --locked vhost-device-vsock, into a folder in PATH"),
        "guest kernel" => Mend {
            debian: "./taskw kernel in waggle's source tree and WAGGLE_KERNEL=target/kernel, or of its package: /usr/lib/waggle/fetch-kernel DATA-FOLDER/kernel",
            fedora: "copy the folder that ./taskw kernel makes on a Debian, and name it by WAGGLE_KERNEL",
            arch: "copy the folder that ./taskw kernel makes on a Debian, and name it by WAGGLE_KERNEL",
        },
        "mkfs.ext4" => {
            Mend { debian: "apt-get install e2fsprogs", fedora: "dnf install e2fsprogs", arch: "pacman -S e2fsprogs" }
        }
        "user namespaces" => Mend {
            debian: "sysctl -w kernel.unprivileged_userns_clone=1; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0",
            fedora: "sysctl -w user.max_user_namespaces=15000",
            arch: "sysctl -w kernel.unprivileged_userns_clone=1",
        },
        "control group" => Mend::everywhere("systemd-run --user --scope -p Delegate=yes waggle serve, or the unit"),
        "data folder" => Mend::everywhere("make room or chown it; WAGGLE_DATA_DIR names another one"),
        "image folder" => Mend::everywhere("make room or chown it; WAGGLE_IMAGE_CACHE_DIR names another one"),
        "memory" => Mend::everywhere("end something, or give machines less: WAGGLE_DEFAULT_MEMORY_MB"),
        "image python" => {
            Mend::everywhere("./taskw images and WAGGLE_IMAGE_PYTHON=oci:target/images/python, or name another image")
        }
        "image node" => {
            Mend::everywhere("./taskw images and WAGGLE_IMAGE_NODE=oci:target/images/node, or name another image")
        }
        "image shell" => {
            Mend::everywhere("./taskw images and WAGGLE_IMAGE_SHELL=oci:target/images/shell, or name another image")
        }
        _ => return None,
    })
}
