// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Kernels of a few instructions that write to the virtio console. QEMU starts them like Linux, through PVH.
//!
//! ```text
//!  0x100000  code
//!  0x101000  the text
//!  0x102000  the transmit queue: two descriptors of 16 bytes, then the ring of available descriptors
//!  0x103000  the ring of used descriptors
//! ```

const ADDRESS: u32 = 0x10_0000;
const TEXT: u32 = ADDRESS + 0x1000;
const QUEUE: u32 = ADDRESS + 0x2000;
/// The index in the ring of available descriptors, and that in the ring of used ones.
const AVAILABLE: u32 = QUEUE + 32 + 2;
const USED: u32 = QUEUE + 0x1000 + 2;
const PAGE: u32 = 4096;

/// Registers of a virtio device in memory, version 1, and their values in the order of the writes. The transmit queue
/// is queue 1.
const SET_UP: [(u8, u32); 9] = [
    (0x70, 0), // status: reset
    (0x70, 3), // status: driver found
    (0x20, 0), // features
    (0x28, PAGE),
    (0x30, 1), // selected queue
    (0x38, 2), // its size
    (0x3c, PAGE),
    (0x40, QUEUE / PAGE),
    (0x70, 7), // status: driver works
];
/// Tells the device that queue 1 has changed.
const NOTIFY: (u8, u32) = (0x50, 1);

/// A kernel that prints a text on the console and then halts.
pub(crate) fn printing(text: &str) -> Vec<u8> {
    // hlt; jmp -3
    kernel(text, &[0xf4, 0xeb, 0xfd])
}

/// A kernel that prints without end.
pub(crate) fn flooding() -> Vec<u8> {
    let (available, used) = (AVAILABLE.to_le_bytes(), USED.to_le_bytes());
    // wait: mov ax,[used]; cmp ax,[available]; jne wait; inc word [available]; notify; jmp wait
    let code = [
        &[0x66, 0xa1][..],
        &used,
        &[0x66, 0x3b, 0x05],
        &available,
        &[0x75, 0xf1, 0x66, 0xff, 0x05],
        &available,
        &write(NOTIFY),
        &[0xeb, 0xe1],
    ];
    kernel(&"x".repeat(64), &code.concat())
}

/// `mov dword [ebx+register],value`
fn write((register, value): (u8, u32)) -> Vec<u8> {
    [&[0xc7, 0x43, register][..], &value.to_le_bytes()].concat()
}

/// A kernel that finds the console, prints the text once, and continues with `code`.
fn kernel(text: &str, code: &[u8]) -> Vec<u8> {
    // The devices are 0x200 bytes apart; the console has the number 3.
    // mov ebx,0xfeb00000; next: cmp dword [ebx+8],3; je +8; add ebx,0x200; jmp next
    let mut start = vec![0xbb, 0, 0, 0xb0, 0xfe, 0x83, 0x7b, 8, 3, 0x74, 8, 0x81, 0xc3, 0, 2, 0, 0, 0xeb, 0xf2];
    SET_UP.into_iter().chain([NOTIFY]).for_each(|step| start.extend(write(step)));
    start.extend(code);
    let length = u32::try_from(text.len()).unwrap();
    let descriptor = [u64::from(TEXT).to_le_bytes(), u64::from(length).to_le_bytes()].concat();
    let mut image = vec![0; 0x4000];
    for (at, content) in [
        (ADDRESS, start.as_slice()),
        (TEXT, text.as_bytes()),
        (QUEUE, &descriptor),
        // One descriptor is available.
        (AVAILABLE, &[1, 0]),
    ] {
        let at = usize::try_from(at - ADDRESS).unwrap();
        image[at..at + content.len()].copy_from_slice(content);
    }
    elf(&image)
}

/// An ELF file with the image, and with a note that its code begins at its start (type 18 of Xen's notes).
fn elf(image: &[u8]) -> Vec<u8> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let (address, bytes) = (u64::from(ADDRESS), image.len() as u64);
    let file = [
        // An executable for x86-64 with two program headers at 64.
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".as_slice(),
        &words(&[address, 64, 0]),
        &[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        // The image is loaded.
        &words(&[0x7_0000_0001, 0x1000, address, address, bytes, bytes, 0x1000]),
        // The note.
        &words(&[0x4_0000_0004, 176, 0, 0, 24, 24, 4]),
        &words(&[0x8_0000_0004, 0x6e_6558_0000_0012, address]),
    ];
    let mut file = file.concat();
    assert_eq!(file.len(), 200);
    file.resize(0x1000, 0);
    [file.as_slice(), image].concat()
}
