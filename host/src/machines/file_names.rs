// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Names of the files in a run folder, and of KVM's device.

pub(super) const KVM: &str = "/dev/kvm";
/// The initial root of a QEMU guest.
pub(super) const INITRAMFS: &str = "initramfs";
/// The boot configuration of a libkrun guest.
pub(super) const BOOT: &str = "boot";
/// The writable disk.
pub(super) const SCRATCH: &str = "scratch";
/// Prefix of socket names: the guest's connections to port N arrive at the socket `link_N`.
pub(super) const LINK_SOCKETS: &str = "link";
