// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Kernels of a few instructions. QEMU starts them like Linux.
//!
//! A bzImage starts in real mode. Its code begins at 0x200 with a jump over the header that follows
//! (`Documentation/arch/x86/boot.rst` in the kernel).

/// Offset of the magic number of a kernel.
const MAGIC_AT: usize = 0x202;
/// Offset of the code that the first jump targets.
const CODE_AT: usize = 0x270;

/// A kernel that prints a text on the serial console and then halts forever.
pub(crate) fn printing(text: &str) -> Vec<u8> {
    // cs points 0x200 bytes after the start of the kernel, so an offset in cs is an offset in the kernel minus 0x200:
    // push cs; pop ds; mov si,text-0x200; mov dx,0x3f8; lodsb; test al,al; jz +3; out dx,al; jmp -8; hlt; jmp -3
    let text_at = u16::try_from(CODE_AT + 0x20 - 0x200).unwrap().to_le_bytes();
    let code = [
        0x0e, 0x1f, 0xbe, text_at[0], text_at[1], 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8,
        0xf4, 0xeb, 0xfd,
    ];
    let mut kernel = with_code(&code);
    kernel[CODE_AT + 0x20..CODE_AT + 0x20 + text.len()].copy_from_slice(text.as_bytes());
    kernel
}

/// A kernel that prints forever.
pub(crate) fn flooding() -> Vec<u8> {
    // mov dx,0x3f8; mov al,'x'; out dx,al; jmp -3
    with_code(&[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd])
}

fn with_code(code: &[u8]) -> Vec<u8> {
    let mut kernel = vec![0; 8192];
    // One sector of real-mode code follows the boot sector. The boot sector ends with its own magic number.
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    let distance = u8::try_from(CODE_AT - MAGIC_AT).unwrap();
    kernel[0x200..MAGIC_AT].copy_from_slice(&[0xeb, distance]);
    kernel[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
    // Boot protocol 2.8, kernel loaded high, initrd anywhere below 2 GiB.
    kernel[0x206..0x208].copy_from_slice(&[0x08, 0x02]);
    kernel[0x211] = 1;
    kernel[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    kernel[CODE_AT..CODE_AT + code.len()].copy_from_slice(code);
    kernel
}
