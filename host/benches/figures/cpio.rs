// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The bare machine's initial root, in the kernel's archive format ("newc" of `cpio(5)`).

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Returns an archive with `init`.
pub(crate) fn initial_root(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for folder in ["dev", "sys"] {
        entry(&mut archive, folder, FOLDER, &[]);
    }
    entry(&mut archive, "init", PROGRAM, init);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let (inode, bytes, name_bytes) = (archive.len() + 1, content.len(), name.len() + 1);
    let head = format!(
        "070701{inode:08X}{mode:08X}{:016X}{:08X}{:08X}{bytes:08X}{:032X}{name_bytes:08X}{:08X}",
        0, 1, 0, 0, 0
    );
    for part in [[head.as_bytes(), name.as_bytes(), &[0]].concat().as_slice(), content] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
