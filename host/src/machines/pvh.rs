// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Kernels that QEMU enters through PVH: ELF files with a note that gives the address of a 32-bit entry
//! (`Documentation/arch/x86/boot.rst` in the kernel, `XEN_ELFNOTE_PHYS32_ENTRY` in Xen's `elfnote.h`).
//!
//! ```text
//!  0           64               176     4096
//!  ELF header  2 program headers note … the kernel's memory image
//! ```

use std::io::{self, Read, Seek, SeekFrom, Write};

use memchr::memmem;

/// The name of a note of Xen, with its terminator.
const XEN: [u8; 4] = *b"Xen\0";
/// The type of the note with the entry's address.
const ENTRY_NOTE: u32 = 18;
/// Size of a note's header: the lengths of name and content, and the type.
const NOTE_HEADER_BYTES: usize = 12;
/// A text that only a kernel with initramfs support contains: an error of its unpacker (`init/initramfs.c`).
const INITRAMFS_TEXT: &[u8] = b"no cpio magic";

const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// ELF, 64 bits, little-endian, version 1.
const ELF_START: [u8; 7] = *b"\x7fELF\x02\x01\x01";
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const LOADED: u32 = 1;
const NOTES: u32 = 4;
const READ: u32 = 4;
const READ_WRITE_EXECUTE: u32 = 7;
/// Offset of the image in the file.
const IMAGE_AT: u64 = 4096;
/// Maximum number of program headers in an operator's kernel. Linux has five.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Maximum size of the notes in an operator's kernel, in bytes. Linux has less than 1 KiB.
const NOTES_BYTES_MAX: u64 = 64 * 1024;
/// A bzImage has this magic number at [`BZIMAGE_MAGIC_AT`].
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
const BZIMAGE_MAGIC_AT: u64 = 0x202;

/// The reason why QEMU cannot boot a kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum PvhFault {
    #[error("failed to read the kernel")]
    Read { source: io::Error },
    #[error("the file is a bzImage, which has no PVH entry")]
    BzImage,
    #[error("the file is not an ELF file for x86-64")]
    NotElf,
    #[error("the file is truncated")]
    Truncated,
    #[error("the kernel has no PVH entry (CONFIG_PVH)")]
    NoEntry,
    #[error("the kernel has no support for an initramfs (CONFIG_BLK_DEV_INITRD)")]
    NoInitramfs,
}

/// Writes an ELF file around the memory image of a kernel that is loaded at `address`.
///
/// # Errors
/// The image has no PVH entry or no initramfs support, or cannot be written.
pub(super) fn write(image: &[u8], address: u64, out: &mut impl Write) -> io::Result<()> {
    let bytes = image.len() as u64;
    let end = address.saturating_add(bytes);
    let entry = entry_in_image(image).filter(|entry| (address..end).contains(entry));
    let entry = entry.ok_or_else(|| io::Error::other(PvhFault::NoEntry))?;
    if memmem::find(image, INITRAMFS_TEXT).is_none() {
        return Err(io::Error::other(PvhFault::NoInitramfs));
    }
    // QEMU reads eight bytes of the entry's address from the note of a 64-bit file.
    let note = [4_u32.to_le_bytes(), 8_u32.to_le_bytes(), ENTRY_NOTE.to_le_bytes(), XEN].concat();
    let note = [note.as_slice(), &entry.to_le_bytes()].concat();
    let note_at = (ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES) as u64;
    let mut file = Vec::new();
    file.extend_from_slice(&ELF_START);
    file.resize(16, 0);
    file.extend_from_slice(&EXECUTABLE.to_le_bytes());
    file.extend_from_slice(&X86_64.to_le_bytes());
    file.extend_from_slice(&1_u32.to_le_bytes());
    // The entry, and the offsets of the program headers and of the section headers.
    for word in [entry, ELF_HEADER_BYTES as u64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    // The sizes of this header, of a program header, and their number; then the same for sections.
    for word in [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 2, 0, 0, 0] {
        file.extend_from_slice(&u16::try_from(word).unwrap_or_default().to_le_bytes());
    }
    let headers = [
        (LOADED, READ_WRITE_EXECUTE, [IMAGE_AT, address, address, bytes, bytes, IMAGE_AT]),
        (NOTES, READ, [note_at, 0, 0, note.len() as u64, note.len() as u64, 4]),
    ];
    for (kind, flags, words) in headers {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&flags.to_le_bytes());
        words.iter().for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
    }
    file.extend_from_slice(&note);
    file.resize(usize::try_from(IMAGE_AT).unwrap_or_default(), 0);
    out.write_all(&file)?;
    out.write_all(image)?;
    out.flush()
}

/// Finds the note with the entry in a memory image, which has no section headers that would say where the notes are.
fn entry_in_image(image: &[u8]) -> Option<u64> {
    memmem::find_iter(image, &XEN).find_map(|at| entry_of_note(image.get(at.checked_sub(NOTE_HEADER_BYTES)?..)?))
}

/// Returns the entry if the bytes begin with the note that contains it.
fn entry_of_note(note: &[u8]) -> Option<u64> {
    let (header, rest) = note.split_at_checked(NOTE_HEADER_BYTES)?;
    let content = rest.strip_prefix(&XEN)?;
    match (u32_at(header, 0)?, u32_at(header, 4)?, u32_at(header, 8)?) {
        (4, 4, ENTRY_NOTE) => u32_at(content, 0).map(u64::from),
        // The entry is a 32-bit address, even if the note has room for 64 bits.
        (4, 8, ENTRY_NOTE) => u64_at(content, 0).filter(|entry| u32::try_from(*entry).is_ok()),
        _ => None,
    }
}

/// Checks that a file is a whole kernel with a PVH entry.
///
/// # Errors
/// [`PvhFault`].
pub(super) fn check(file: &mut (impl Read + Seek)) -> Result<(), PvhFault> {
    let fault = |source| PvhFault::Read { source };
    let bytes = file.seek(SeekFrom::End(0)).map_err(fault)?;
    let mut at = |at: u64, length: u64| -> Result<Vec<u8>, PvhFault> {
        if at.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(PvhFault::Truncated);
        }
        file.seek(SeekFrom::Start(at)).map_err(fault)?;
        let mut found = Vec::new();
        (&mut *file).take(length).read_to_end(&mut found).map_err(fault)?;
        Ok(found)
    };
    let start = at(0, bytes.min(ELF_HEADER_BYTES as u64))?;
    if at(BZIMAGE_MAGIC_AT, BZIMAGE_MAGIC.len() as u64).is_ok_and(|magic| magic == BZIMAGE_MAGIC) {
        return Err(PvhFault::BzImage);
    }
    if !start.starts_with(&ELF_START) {
        return Err(PvhFault::NotElf);
    }
    let field = |at| u16_at(&start, at).ok_or(PvhFault::Truncated);
    let (kind, machine, header_bytes, headers) = (field(16)?, field(18)?, field(54)?, field(56)?);
    let is_known = (kind, machine, usize::from(header_bytes)) == (EXECUTABLE, X86_64, PROGRAM_HEADER_BYTES);
    if !is_known || headers > PROGRAM_HEADERS_MAX {
        return Err(PvhFault::NotElf);
    }
    let headers_at = u64_at(&start, 32).ok_or(PvhFault::Truncated)?;
    let headers = at(headers_at, u64::from(headers) * PROGRAM_HEADER_BYTES as u64)?;
    let mut has_entry = false;
    for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
        let (kind, content_at, length) = (u32_at(header, 0), u64_at(header, 8), u64_at(header, 32));
        let (Some(kind), Some(content_at), Some(length)) = (kind, content_at, length) else { continue };
        if content_at.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(PvhFault::Truncated);
        }
        if kind == NOTES {
            let notes = at(content_at, length.min(NOTES_BYTES_MAX))?;
            has_entry |= entry_in_image(&notes).is_some();
        }
    }
    if has_entry { Ok(()) } else { Err(PvhFault::NoEntry) }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const ADDRESS: u64 = 0x0100_0000;

    /// A memory image with a note of the entry and the text of the unpacker.
    fn image(entry: u64) -> Vec<u8> {
        let mut image = b"Xen\0 is not a note here. no cpio magic".to_vec();
        image.resize(64, 0);
        for word in [4_u32, 8, ENTRY_NOTE] {
            image.extend_from_slice(&word.to_le_bytes());
        }
        image.extend_from_slice(&XEN);
        image.extend_from_slice(&entry.to_le_bytes());
        image.resize(8192, 0x90);
        image
    }

    fn elf(image: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = Vec::new();
        write(image, ADDRESS, &mut file).map(|()| file)
    }

    fn checked(bytes: &[u8]) -> String {
        check(&mut Cursor::new(bytes)).map_or_else(|fault| fault.to_string(), |()| "works".to_owned())
    }

    #[test]
    fn written_kernel_is_accepted_and_contains_the_image() {
        let image = image(ADDRESS + 16);
        let file = elf(&image).unwrap();
        assert_eq!(checked(&file), "works");
        assert_eq!(file[4096..], image);
        assert_eq!(u64_at(&file, 24), Some(ADDRESS + 16));
        assert_eq!(entry_of_note(&file[176..]), Some(ADDRESS + 16));
    }

    #[test]
    fn image_without_a_valid_entry_or_initramfs_support_is_an_error() {
        for entry in [0, ADDRESS - 1, ADDRESS + 8192, 1 << 33] {
            assert!(elf(&image(entry)).unwrap_err().to_string().contains("CONFIG_PVH"), "{entry}");
        }
        let mut without = image(ADDRESS);
        let at = memmem::find(&without, INITRAMFS_TEXT).unwrap();
        without[at] = b'N';
        assert!(elf(&without).unwrap_err().to_string().contains("CONFIG_BLK_DEV_INITRD"));
        assert!(elf(b"Xen\0").unwrap_err().to_string().contains("CONFIG_PVH"));
    }

    #[test]
    fn truncated_kernel_is_an_error_at_each_length() {
        let file = elf(&image(ADDRESS)).unwrap();
        for length in (64..file.len()).step_by(40).chain([file.len() - 1]) {
            assert_eq!(checked(&file[..length]), "the file is truncated", "{length}");
        }
        assert_eq!(checked(&[]), "the file is not an ELF file for x86-64");
    }

    #[test]
    fn other_files_are_named() {
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(checked(&image), "the file is a bzImage, which has no PVH entry");
        assert_eq!(checked(b"#!/bin/sh\n"), "the file is not an ELF file for x86-64");
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_ne!(checked(&program), "works");
    }
}
