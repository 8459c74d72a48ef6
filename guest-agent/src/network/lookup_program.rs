// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The BPF program that selects the socket for a new connection, and a small assembler for the program.
//!
//! ```text
//!   to 127.0.0.0/8, ::1, or the machine's own address    the listening socket of a program in the guest, if any
//!   TCP or UDP to port 53, anywhere else                 the agent's DNS server
//!   TCP, anywhere else                                   the agent's listener
//!   UDP, anywhere else                                   none: the sender gets an error
//! ```
//!
//! The kernel runs the program only for packets that belong to no established connection. Processes in the sandbox lack
//! the capabilities to see or remove the program.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::libc;
use waggle_protocol::egress::DNS_PORT;

/// Keys of the map of sockets.
pub(super) const TCP_V4: u32 = 0;
pub(super) const TCP_V6: u32 = 1;
pub(super) const DNS_V4: u32 = 2;
pub(super) const DNS_V6: u32 = 3;
pub(super) const DNS_TCP_V4: u32 = 4;
pub(super) const DNS_TCP_V6: u32 = 5;

/// Number of entries of the map of sockets.
pub(super) const SOCKETS: u32 = 6;

/// Offsets in `struct bpf_sk_lookup`, the program's context. "Local" is the destination of a connection. Addresses are
/// in network byte order, and the port is in this machine's byte order.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_V4: i16 = 40;
const LOCAL_V6: [i16; 4] = [44, 48, 52, 56];
const LOCAL_PORT: i16 = 60;

/// Numbers of the kernel functions that the program calls.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Return values of the program.
const SK_DROP: i32 = 0;
const SK_PASS: i32 = 1;

/// Returns the instructions. `map` contains the sockets under the keys above. Without a socket for an address family,
/// connections of that family are refused.
pub(super) fn program(map: BorrowedFd<'_>, own_v4: Ipv4Addr, own_v6: Ipv6Addr) -> io::Result<Vec<u64>> {
    let mut program = Assembler::default();
    // Register 6 is the context, register 7 is the key, and registers 1 to 5 are scratch.
    program.add(MOV_REGISTER, 6, 1, 0, 0);
    program.add(LOAD_WORD, 2, 6, FAMILY, 0);
    program.jump(JUMP_EQUAL, 2, libc::AF_INET, Label::V4);
    for (register, offset) in (2..).zip(LOCAL_V6) {
        program.add(LOAD_WORD, register, 6, offset, 0);
    }
    let words = |address: Ipv6Addr| {
        let [a, b, c, d] = [0, 4, 8, 12].map(|at| wire_word(address.octets().get(at..at + 4).unwrap_or_default()));
        [a, b, c, d]
    };
    for (address, different) in [(Ipv6Addr::LOCALHOST, Label::NotLoopback), (own_v6, Label::SteerV6)] {
        let [first @ .., last] = words(address);
        for (register, word) in (2..).zip(first) {
            program.jump(JUMP_NOT_EQUAL, register, word, different);
        }
        program.jump(JUMP_EQUAL, 5, last, Label::Pass);
        program.mark(different);
    }
    program.add(MOV, 7, 0, 0, TCP_V6.cast_signed());
    program.jump(JUMP, 0, 0, Label::Protocol);

    program.mark(Label::V4);
    program.add(LOAD_WORD, 2, 6, LOCAL_V4, 0);
    program.jump(JUMP_EQUAL, 2, wire_word(&own_v4.octets()), Label::Pass);
    program.add(AND, 2, 0, 0, 0xff);
    program.jump(JUMP_EQUAL, 2, i32::from(Ipv4Addr::LOCALHOST.octets()[0]), Label::Pass);
    program.add(MOV, 7, 0, 0, TCP_V4.cast_signed());

    program.mark(Label::Protocol);
    program.add(LOAD_WORD, 2, 6, PROTOCOL, 0);
    program.add(LOAD_WORD, 3, 6, LOCAL_PORT, 0);
    program.jump(JUMP_EQUAL, 2, libc::IPPROTO_TCP, Label::Tcp);
    program.jump(JUMP_NOT_EQUAL, 2, libc::IPPROTO_UDP, Label::Drop);
    program.jump(JUMP_NOT_EQUAL, 3, i32::from(DNS_PORT), Label::Drop);
    program.add(ADD, 7, 0, 0, (DNS_V4 - TCP_V4).cast_signed());
    program.jump(JUMP, 0, 0, Label::Steer);

    program.mark(Label::Tcp);
    program.jump(JUMP_NOT_EQUAL, 3, i32::from(DNS_PORT), Label::Steer);
    program.add(ADD, 7, 0, 0, (DNS_TCP_V4 - TCP_V4).cast_signed());

    program.mark(Label::Steer);
    program.add(STORE_WORD, 10, 7, -4, 0);
    program.add(LOAD_MAP, 1, MAP_BY_DESCRIPTOR, 0, map.as_raw_fd());
    program.add(0, 0, 0, 0, 0);
    program.add(MOV_REGISTER, 2, 10, 0, 0);
    program.add(ADD, 2, 0, 0, -4);
    program.add(CALL, 0, 0, 0, MAP_LOOKUP_ELEM);
    program.jump(JUMP_IF_NULL, 0, 0, Label::Drop);
    program.add(MOV_REGISTER, 7, 0, 0, 0);
    program.add(MOV_REGISTER, 1, 6, 0, 0);
    program.add(MOV_REGISTER, 2, 7, 0, 0);
    program.add(MOV, 3, 0, 0, 0);
    program.add(CALL, 0, 0, 0, SK_ASSIGN);
    program.add(MOV_REGISTER, 6, 0, 0, 0);
    program.add(MOV_REGISTER, 1, 7, 0, 0);
    program.add(CALL, 0, 0, 0, SK_RELEASE);
    program.jump(JUMP_NOT_EQUAL, 6, 0, Label::Drop);

    program.mark(Label::Pass);
    program.add(MOV, 0, 0, 0, SK_PASS);
    program.add(EXIT, 0, 0, 0, 0);
    program.mark(Label::Drop);
    program.add(MOV, 0, 0, 0, SK_DROP);
    program.add(EXIT, 0, 0, 0, 0);
    program.finish()
}

/// Converts four bytes of an address to the word that the program loads for them.
fn wire_word(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}

/// Operations, from the kernel's `Documentation/bpf/standardization/instruction-set.rst`. Comparisons have 32 bits,
/// except the comparison with null, which must have 64 bits so that the verifier accepts it as a null check.
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const LOAD_MAP: u8 = 0x18;
const MOV_REGISTER: u8 = 0xbf;
const MOV: u8 = 0xb7;
const AND: u8 = 0x57;
const ADD: u8 = 0x07;
const JUMP: u8 = 0x05;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_IF_NULL: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The value of the source register that marks the immediate as a map's descriptor.
const MAP_BY_DESCRIPTOR: u8 = 1;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Label {
    V4,
    NotLoopback,
    SteerV6,
    Protocol,
    Tcp,
    Steer,
    Pass,
    Drop,
}

/// A program under construction. Jumps refer to labels that are marked later.
#[derive(Debug, Default)]
struct Assembler {
    code: Vec<[u8; 8]>,
    jumps: Vec<(usize, Label)>,
    targets: BTreeMap<Label, usize>,
}

impl Assembler {
    fn add(&mut self, operation: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = immediate.to_ne_bytes();
        self.code.push([operation, source << 4 | destination, o0, o1, i0, i1, i2, i3]);
    }

    fn jump(&mut self, operation: u8, register: u8, immediate: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.add(operation, register, 0, 0, immediate);
    }

    fn mark(&mut self, label: Label) {
        self.targets.insert(label, self.code.len());
    }

    /// Fills in the distance of each jump, and returns the instructions.
    fn finish(mut self) -> io::Result<Vec<u64>> {
        for (at, label) in self.jumps {
            let target = self.targets.get(&label).copied().unwrap_or(at);
            // A distance counts from the instruction after the jump.
            let distance = target.checked_sub(at + 1).and_then(|distance| i16::try_from(distance).ok());
            let distance = distance.ok_or_else(|| io::Error::other(format!("label {label:?} must follow its jump")))?;
            if let Some([_, _, o0, o1, ..]) = self.code.get_mut(at) {
                [*o0, *o1] = distance.to_ne_bytes();
            }
        }
        Ok(self.code.into_iter().map(u64::from_ne_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn jumps_stay_within_the_program() {
        let map = std::fs::File::open("/dev/null").unwrap();
        let code = program(map.as_fd(), Ipv4Addr::new(10, 0, 77, 2), Ipv6Addr::LOCALHOST).unwrap();
        for (at, instruction) in code.iter().enumerate() {
            let [operation, _, o0, o1, ..] = instruction.to_ne_bytes();
            if [JUMP, JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_IF_NULL].contains(&operation) {
                let target = at + 1 + usize::try_from(i16::from_ne_bytes([o0, o1])).unwrap();
                assert!(target < code.len(), "instruction {at} jumps to {target}");
            }
        }
    }

    #[test]
    fn assembler_rejects_jumps_without_a_later_label() {
        let mut program = Assembler::default();
        program.jump(JUMP, 0, 0, Label::Drop);
        assert_eq!(program.finish().unwrap_err().to_string(), "label Drop must follow its jump");
    }
}
