// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A `memcpy` in place of musl's for x86_64, which copies eight bytes at a time with `rep movsq`: that takes long to
//! start, and is slow where the two sides are not aligned alike, as the chunks in frames are not. musl's for aarch64 is
//! quick.
//!
//! It has musl's second name for it as well, or the linker would find two. By that name `memmove` copies forwards where
//! the two sides overlap, so nothing is written before what it would destroy has been read.

#[cfg(all(target_env = "musl", target_arch = "x86_64"))]
core::arch::global_asm!(
    ".globl memcpy, __memcpy_fwd",
    ".hidden __memcpy_fwd",
    ".type memcpy, @function",
    "memcpy:",
    "__memcpy_fwd:",
    "    mov rax, rdi",
    "    cmp rdx, 16",
    "    jb 3f",
    "    cmp rdx, 256",
    "    ja 6f",
    // 16 to 256 bytes: blocks of 16, and the last 16.
    "    movups xmm0, [rsi + rdx - 16]",
    "    lea rcx, [rdi + rdx - 16]",
    "2:  movups xmm1, [rsi]",
    "    movups [rdi], xmm1",
    "    add rsi, 16",
    "    add rdi, 16",
    "    cmp rdi, rcx",
    "    jb 2b",
    "    movups [rcx], xmm0",
    "    ret",
    "3:  cmp rdx, 8",
    "    jb 4f",
    // 8 to 15: the first and the last eight.
    "    mov rcx, [rsi]",
    "    mov r8, [rsi + rdx - 8]",
    "    mov [rdi], rcx",
    "    mov [rdi + rdx - 8], r8",
    "    ret",
    "4:  cmp rdx, 4",
    "    jb 5f",
    // 4 to 7: the first and the last four.
    "    mov ecx, [rsi]",
    "    mov r8d, [rsi + rdx - 4]",
    "    mov [rdi], ecx",
    "    mov [rdi + rdx - 4], r8d",
    "    ret",
    "5:  test rdx, rdx",
    "    jz 7f",
    // 1 to 3: the first, the middle and the last one.
    "    lea r10, [rdx - 1]",
    "    shr rdx, 1",
    "    movzx ecx, byte ptr [rsi]",
    "    movzx r8d, byte ptr [rsi + rdx]",
    "    movzx r9d, byte ptr [rsi + r10]",
    "    mov [rdi], cl",
    "    mov [rdi + rdx], r8b",
    "    mov [rdi + r10], r9b",
    "    ret",
    // More: the processor's own way, which does not mind how the sides are aligned.
    "6:  mov rcx, rdx",
    "    rep movsb",
    "7:  ret",
    ".size memcpy, . - memcpy",
);

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    const BYTES: usize = 700;

    fn pattern() -> Vec<u8> {
        (0..BYTES).map(|at| (at * 7 + at / 256).to_le_bytes()[0]).collect()
    }

    #[test]
    fn copies_of_every_length_are_exact_and_write_nothing_else() {
        let from = pattern();
        for (length, (source, target)) in
            (0..600).flat_map(|length| [(0, 0), (3, 0), (0, 5), (9, 16)].map(|at| (length, at)))
        {
            let mut to = vec![0xee; BYTES];
            black_box(&mut to[target..target + length]).copy_from_slice(black_box(&from[source..source + length]));
            assert_eq!(to[target..target + length], from[source..source + length]);
            assert!(to[..target].iter().chain(&to[target + length..]).all(|byte| *byte == 0xee), "{length}");
        }
    }

    #[test]
    fn overlapping_copies_are_exact_both_ways() {
        let from = pattern();
        for (length, distance) in
            (0..600).flat_map(|length| [1, 3, 8, 15, 16, 17, 64].map(|distance| (length, distance)))
        {
            let (mut down, mut up) = (from.clone(), from.clone());
            black_box(&mut down).copy_within(black_box(distance..distance + length), 0);
            black_box(&mut up).copy_within(black_box(0..length), distance);
            assert_eq!(down[..length], from[distance..distance + length], "{length} by {distance}");
            assert_eq!(up[distance..distance + length], from[..length], "{length} by {distance}");
        }
    }
}
