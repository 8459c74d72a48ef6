// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a kernel module's dependencies from the `.modinfo` section of its ELF file.
//!
//! `modules.dep` would list the dependencies, but a kernel package does not contain that file: `depmod` creates it when
//! a kernel is installed, and the guests' kernel is only unpacked. Format: System V ABI, ELF-64, little-endian.

use std::str;

/// Offsets of fields in the file header, and of the `CONTENT` fields in a section header.
const SECTIONS_AT: usize = 0x28;
const SECTION_SIZE_AT: usize = 0x3a;
const SECTION_COUNT_AT: usize = 0x3c;
const NAMES_INDEX_AT: usize = 0x3e;
const CONTENT_AT: usize = 0x18;
const CONTENT_SIZE_AT: usize = 0x20;

/// The dependencies of one module.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Needs {
    /// Modules whose symbols the module uses.
    pub(super) depends: Vec<String>,
    /// Modules that should be loaded before the module if they exist. They may be built in, or be only aliases.
    pub(super) soft: Vec<String>,
}

/// Reads the dependencies from a module file's content. Returns `None` if the content is not a module.
pub(super) fn needs(module: &[u8]) -> Option<Needs> {
    let mut needs = Needs::default();
    for entry in section(module, b".modinfo")?.split(|byte| *byte == 0) {
        let Some((key, value)) = str::from_utf8(entry).ok().and_then(|text| text.split_once('=')) else { continue };
        match key {
            "depends" => needs.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(plain)),
            "softdep" => needs.soft.extend(before(value)),
            _ => {}
        }
    }
    Some(needs)
}

/// Replaces `-` with `_` in a module's name. The kernel treats the two as equal, and file names use both.
pub(super) fn plain(name: &str) -> String {
    name.replace('-', "_")
}

// Returns the modules after `pre:`. In `pre: a b post: c`, these are `a` and `b`.
fn before(softdep: &str) -> impl Iterator<Item = String> {
    let mut is_before = false;
    softdep.split_whitespace().filter_map(move |word| match word {
        "pre:" => {
            is_before = true;
            None
        }
        "post:" => {
            is_before = false;
            None
        }
        name => is_before.then(|| plain(name)),
    })
}

fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = word64(file, SECTIONS_AT)?;
    let header_size = word16(file, SECTION_SIZE_AT)?;
    let header = |index: usize| file.get(headers.checked_add(index.checked_mul(header_size)?)?..);
    let names = content(file, header(word16(file, NAMES_INDEX_AT)?)?)?;
    for index in 0..word16(file, SECTION_COUNT_AT)? {
        let header = header(index)?;
        let at = usize::try_from(u32::from_le_bytes(header.get(..4)?.try_into().ok()?)).ok()?;
        if names.get(at..)?.split(|byte| *byte == 0).next() == Some(name) {
            return content(file, header);
        }
    }
    None
}

fn content<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let start = word64(header, CONTENT_AT)?;
    file.get(start..start.checked_add(word64(header, CONTENT_SIZE_AT)?)?)
}

fn word64(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
}

fn word16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?)))
}

#[cfg(test)]
pub(super) use tests::module;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file of two sections: the names, and `.modinfo`.
    pub(crate) fn module(entries: &[u8]) -> Vec<u8> {
        let names = b"\0.names\0.modinfo\0";
        let mut file = vec![0; 0x40];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file.extend_from_slice(names);
        let info_at = file.len();
        file.extend_from_slice(entries);
        let headers_at = file.len() as u64;
        for (name, at, size) in [(1_u32, 0x40, names.len()), (8, info_at, entries.len())] {
            let mut header = vec![0; 0x40];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[0x28..0x30].copy_from_slice(&headers_at.to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&0x40_u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        file
    }

    #[test]
    fn needs_are_read_from_the_section() {
        let file = module(b"license=GPL\0depends=libcrc32c,virtio-ring\0softdep=pre: crc32c-x post: late\0");
        let expected = Needs { depends: vec!["libcrc32c".into(), "virtio_ring".into()], soft: vec!["crc32c_x".into()] };
        assert_eq!(needs(&file), Some(expected));
        assert_eq!(needs(&module(b"depends=\0")), Some(Needs::default()));
    }

    #[test]
    fn returns_none_if_the_content_is_not_a_module() {
        assert_eq!(needs(b""), None);
        assert_eq!(needs(b"\xfd7zXZ\0\0\0\0\0"), None);
        assert_eq!(needs(&module(b"depends=a\0")[..0x80]), None);
    }

    proptest! {
        #[test]
        fn damaged_module_does_not_cause_a_panic(at in 0_usize..0x90, byte: u8) {
            let mut file = module(b"depends=a\0");
            file[at] = byte;
            let _ = needs(&file);
        }
    }
}
