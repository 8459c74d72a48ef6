// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Limits of an image. Images are hostile: each number below limits memory, disk or time of the host.

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Bytes of an index, a manifest or a configuration; registries reject manifests above 4 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 * MIB;

/// Nesting of indexes. Build tools nest one level; the specification sets no limit.
pub(super) const INDEX_DEPTH_MAX: u32 = 4;

/// Indexes that are read to find one image, at all depths together.
pub(super) const INDEXES_READ_MAX: u32 = 64;

/// Platforms that an error lists.
pub(super) const PLATFORMS_NAMED_MAX: usize = 16;

/// Layers of an image: overlayfs stops at 500, docker at 127.
pub(super) const LAYERS_MAX: usize = 500;

/// Files in an `oci-archive:` tar: layers, configurations and manifests of all its images.
pub(super) const ARCHIVE_MEMBERS_MAX: usize = 10_000;

/// Bytes of all layers of one image after decompression. The largest images in use (machine learning) have 10 to 20
/// GiB.
pub(crate) const EXPANDED_BYTES_MAX: u64 = 32 * GIB;

/// Expanded bytes per compressed byte, checked once a layer has expanded to more than `RATIO_FREE_BYTES`. Text
/// reaches 20, a file of zeros 1000.
pub(super) const RATIO_MAX: u64 = 200;

/// A layer may expand to this at any ratio: small layers of zeros exist and are harmless.
pub(super) const RATIO_FREE_BYTES: u64 = 256 * MIB;

/// Entries of all layers together, and nodes of the merged tree. Each costs the host about 1 KiB of memory while it
/// merges; the official language images have 10,000 to 60,000.
pub(super) const ENTRIES_MAX: u64 = 500_000;

/// Bytes of the merged tree's files. Hard links count as copies, which they become.
pub(super) const CONTENT_BYTES_MAX: u64 = 32 * GIB;

/// Bytes of all files of up to a block: the EROFS writer keeps two copies of them in memory.
pub(super) const SMALL_FILE_BYTES_MAX: u64 = 512 * MIB;

/// Bytes of names, link targets and extended attributes; they are in memory while an image is merged.
pub(super) const METADATA_BYTES_MAX: u64 = 256 * MIB;

/// Bytes of the paths that the EROFS writer keeps in memory: one for each entry, two for a folder. Images in use have
/// some megabytes.
pub(super) const PATHS_BYTES_MAX: u64 = 512 * MIB;

/// Steps of the EROFS writer, which searches folders linearly and hashes each prefix of a path: one to two
/// minutes. A folder of 100,000 files takes half of it.
pub(super) const WRITE_STEPS_MAX: u64 = 10_000_000_000;

/// Bytes of a name compared in one such step.
pub(super) const COMPARED_BYTES_PER_STEP: u64 = 64;

/// Bytes of a path hashed in one such step.
pub(super) const HASHED_BYTES_PER_STEP: u64 = 16;

/// Steps through paths, folders and link targets while layers are merged: some seconds. An entry takes about ten.
pub(super) const TREE_STEPS_MAX: u64 = 200_000_000;

/// Folders above an entry. Recursion in here and in the EROFS writer goes as deep; deep `node_modules` reach 50.
pub(super) const PATH_DEPTH_MAX: usize = 256;

/// Bytes of a path and of a link's target: Linux's `PATH_MAX`.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// Bytes of one name: Linux's `NAME_MAX`, and EROFS's.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Symbolic links followed to one entry, as in Linux.
pub(super) const SYMLINKS_FOLLOWED_MAX: u32 = 40;

/// Bytes of one pax or GNU extension header: it is read into memory. Go's archive/tar allows 1 MiB as well.
pub(super) const TAR_EXTENSION_BYTES_MAX: u64 = MIB;

/// Parts of a sparse file; their map is read into memory, 32 bytes each. A file system's image has some thousands.
pub(super) const SPARSE_PARTS_MAX: usize = 65_536;

/// Bytes of one file's extended attributes, names included. ext4 allows 4 KiB, and file capabilities take 20 bytes.
pub(super) const XATTR_BYTES_MAX: usize = 16 * 1024;

/// Variables in an image's environment.
pub(super) const ENV_COUNT_MAX: usize = 1024;

/// Bytes of an image's environment; it is part of the boot configuration and of every command.
pub(super) const ENV_BYTES_MAX: usize = 64 * 1024;

/// Concurrent merges: each may take a gigabyte of memory, and a CPU.
pub(crate) const MERGES_AT_ONCE: usize = 2;
