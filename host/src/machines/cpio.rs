// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes cpio archives in the newc format, which the kernel accepts as an initramfs.
//!
//! Specification: `Documentation/driver-api/early-userspace/buffer-format.rst` in the kernel. Every entry belongs to
//! root and has one link and no modification time, so equal content yields equal bytes. Archives can be concatenated;
//! the kernel reads all of them.

use std::fmt::Write;

/// `S_IFDIR`.
const FOLDER: u32 = 0o040_000;
/// `S_IFREG`.
const FILE: u32 = 0o100_000;
/// Each header (with its name) and each file's content is padded to a multiple of this number of bytes.
const ALIGNMENT: usize = 4;
/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive in memory.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// A file is larger than the format allows.
#[derive(Debug, thiserror::Error)]
#[error("{name} has {bytes} bytes; a file of an initramfs must have at most {}", u32::MAX)]
pub(crate) struct TooLarge {
    name: String,
    bytes: usize,
}

impl Archive {
    /// Adds a folder. Its parents must have been added before. `path` has no leading slash.
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, 0, &[]);
    }

    /// Adds a file. Its folder must have been added before. `path` has no leading slash.
    ///
    /// # Errors
    /// [`TooLarge`]: the size does not fit into the header.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<(), TooLarge> {
        let size =
            u32::try_from(content.len()).map_err(|_| TooLarge { name: path.to_owned(), bytes: content.len() })?;
        self.entry(path, FILE | permissions, size, content);
        Ok(())
    }

    /// Ends the archive and returns its bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, size: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let name_size = name.len() + 1;
        // Magic, inode, mode, uid, gid, links, mtime, size, two device numbers of two parts each, name size, checksum.
        let mut header = String::from("070701");
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0];
        for field in fields {
            // Writing to a String cannot fail.
            let _ = write!(header, "{field:08X}");
        }
        let _ = write!(header, "{name_size:08X}{:08X}", 0);
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("waggle");
        archive.file("waggle/boot", 0o600, b"12345").unwrap();
        archive.file("init", 0o755, b"\x7fELF").unwrap();
        archive.finish()
    }

    #[test]
    fn cpio_lists_the_written_entries() {
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is missing: apt-get install cpio");
        cpio.stdin.take().unwrap().write_all(&archive()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let seen: Vec<_> = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .map(|words| (words[0].to_owned(), words[2].to_owned(), words[4].to_owned(), words[8].to_owned()))
            .collect();
        let expected = [
            ("drwxr-xr-x", "0", "0", "waggle"),
            ("-rw-------", "0", "5", "waggle/boot"),
            ("-rwxr-xr-x", "0", "4", "init"),
        ];
        assert_eq!(seen, expected.map(|(m, u, s, n)| (m.into(), u.into(), s.into(), n.into())));
    }

    #[test]
    fn equal_content_yields_equal_aligned_bytes() {
        assert_eq!(archive(), archive());
        assert_eq!(archive().len() % ALIGNMENT, 0);
    }
}
