// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits of an image. An image may be malicious, so each number limits the memory, disk or time that an image costs.

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Maximum bytes of an index, a manifest or a configuration. Registries reject manifests above 4 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 * MIB;

/// Maximum nesting depth of indexes. Build tools nest one level; the specification sets no limit.
pub(super) const INDEX_DEPTH_MAX: u32 = 4;

/// Maximum number of indexes, at all depths, that are read to find one image.
pub(super) const INDEXES_READ_MAX: u32 = 64;

/// Maximum number of platforms that an error lists.
pub(super) const PLATFORMS_NAMED_MAX: usize = 16;

/// Maximum number of layers of an image. overlayfs supports 500 layers, docker 127.
pub(super) const LAYERS_MAX: usize = 500;

/// Maximum number of files in an `oci-archive:` tar: layers, configurations and manifests of all images in the archive.
pub(super) const ARCHIVE_MEMBERS_MAX: usize = 10_000;

/// Maximum bytes of an image's layers after decompression, all layers together. The largest images in use (machine
/// learning) have 10 to 20 GiB.
pub(crate) const EXPANDED_BYTES_MAX: u64 = 32 * GIB;

/// Maximum number of expanded bytes per compressed byte, checked for layers that expand to more than
/// `RATIO_FREE_BYTES`. Text has a ratio of up to 20, a file of zeros 1000.
pub(super) const RATIO_MAX: u64 = 200;

/// A layer may expand to this size at any ratio, because small layers of zeros exist and are harmless.
pub(super) const RATIO_FREE_BYTES: u64 = 256 * MIB;

/// Maximum number of entries in all layers together, and of nodes in the merged tree. An entry costs about 400 bytes of
/// memory during the merge, a folder with one child 1200 bytes: the maximum costs up to 600 MB. The official language
/// images have 10,000 to 60,000 entries.
pub(super) const ENTRIES_MAX: u64 = 500_000;

/// Maximum total bytes of names, link targets and extended attributes, which are in memory during a merge. Attributes
/// count in their encoded form in memory.
pub(super) const METADATA_BYTES_MAX: u64 = 256 * MIB;

/// Maximum number of steps through paths, folders and link targets while layers are merged. The maximum takes some
/// seconds. An entry takes about ten steps.
pub(super) const TREE_STEPS_MAX: u64 = 200_000_000;

/// Maximum number of folders above an entry, and thereby the recursion depth of the merge. Deep `node_modules` trees
/// reach 50 levels.
pub(super) const PATH_DEPTH_MAX: usize = 256;

/// Maximum bytes of a path and of a link's target: Linux's `PATH_MAX`.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// Maximum bytes of one name: Linux's `NAME_MAX`, which is also the limit of EROFS.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Maximum number of symbolic links followed to resolve one path, as in Linux.
pub(super) const SYMLINKS_FOLLOWED_MAX: u32 = 40;

/// Maximum bytes of one pax or GNU extension header, which is read into memory. Go's archive/tar also allows 1 MiB.
pub(super) const TAR_EXTENSION_BYTES_MAX: u64 = MIB;

/// Maximum number of parts of a sparse file. The map of the parts uses 32 bytes of memory per part. A file system's
/// image has some thousands of parts.
pub(super) const SPARSE_PARTS_MAX: usize = 65_536;

/// Maximum bytes of one file's extended attributes, names included. ext4 allows 4 KiB; file capabilities use 20 bytes.
pub(super) const XATTR_BYTES_MAX: usize = 16 * 1024;

/// Maximum number of variables in an image's environment.
pub(super) const ENV_COUNT_MAX: usize = 1024;

/// Maximum bytes of an image's environment, which is part of the boot configuration and of every command.
pub(super) const ENV_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of concurrent merges. Each merge may use one CPU and a gigabyte of memory: for `ENTRIES_MAX` entries
/// with `METADATA_BYTES_MAX` bytes, and for the window of a zstd layer.
pub(crate) const MERGES_AT_ONCE: usize = 2;
