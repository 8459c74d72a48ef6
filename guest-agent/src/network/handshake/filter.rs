// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Classic BPF programs with which the kernel selects packets, and a small assembler for them.
//!
//! The capture filters pass the SYNs to addresses outside the machine, and the answers to probes. They select the same
//! connections as the lookup program. The listener's filter drops each SYN that does not have the agent's mark, so a
//! program's SYN stays unanswered until the agent sends it again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;
use socket2::SockFilter;
use waggle_protocol::egress::{DNS_PORT, GUEST_ADDRESS, GUEST_ADDRESS_V6};

use super::packet::{ACK, PACKET_BYTES_MAX, PROBE, RST, SYN};

/// The mark of the packets that the agent sends. Setting a mark needs capabilities that nothing in the sandbox has.
pub(super) const MARK: u32 = 0x7761_6767;

/// Operations, from the kernel's `Documentation/networking/filter.rst`.
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_BYTE_BEHIND: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_HALF_BEHIND: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const LOAD_WORD_BEHIND: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
/// Loads the length of an IPv4 header, which the operations with `_BEHIND` add to their offsets.
const LOAD_V4_HEADER_BYTES: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Offsets in a TCP header.
const TO_PORT: u32 = 2;
const ACKNOWLEDGED: u32 = 8;
const FLAGS: u32 = 13;

/// Offsets in an IPv4 header.
const V4_PROTOCOL: u32 = 9;
const V4_TO: u32 = 16;

/// Offsets in an IPv6 header, and its length.
const V6_PROTOCOL: u32 = 6;
const V6_TO: u32 = 24;
const V6_HEADER_BYTES: u32 = 40;

const TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();

/// Returns the filter of a listener. The filter's packets begin with the TCP header.
pub(super) fn listener() -> Vec<SockFilter> {
    let mut filter = Filter::default();
    filter.add(LOAD_BYTE, FLAGS);
    filter.add(AND, (SYN | ACK).into());
    filter.jump_unless(SYN.into(), Label::Pass);
    filter.add(LOAD_WORD, offset(libc::SKF_AD_OFF + libc::SKF_AD_MARK));
    filter.jump_if(MARK, Label::Pass);
    filter.finish(u32::MAX)
}

/// Returns the filter of a socket that captures packets of `own`'s family. The filter's packets begin with the IP
/// header.
pub(super) fn capture(own: IpAddr) -> Vec<SockFilter> {
    let mut filter = Filter::default();
    let (word, half) = match own {
        IpAddr::V4(_) => {
            filter.add(LOAD_BYTE, V4_PROTOCOL);
            filter.jump_unless(TCP, Label::Drop);
            filter.add(LOAD_V4_HEADER_BYTES, 0);
            filter.add(LOAD_BYTE_BEHIND, FLAGS);
            ((LOAD_WORD_BEHIND, ACKNOWLEDGED), (LOAD_HALF_BEHIND, TO_PORT))
        }
        IpAddr::V6(_) => {
            filter.add(LOAD_BYTE, V6_PROTOCOL);
            filter.jump_unless(TCP, Label::Drop);
            filter.add(LOAD_BYTE, V6_HEADER_BYTES + FLAGS);
            ((LOAD_WORD, V6_HEADER_BYTES + ACKNOWLEDGED), (LOAD_HALF, V6_HEADER_BYTES + TO_PORT))
        }
    };
    // Almost all packets are dropped here: they are neither a SYN nor a reset.
    filter.add(AND, (SYN | RST | ACK).into());
    filter.jump_if(SYN.into(), Label::Syn);
    filter.jump_unless((RST | ACK).into(), Label::Drop);
    filter.add(word.0, word.1);
    filter.jump_if(PROBE, Label::Pass);
    filter.jump_always(Label::Drop);

    filter.mark(Label::Syn);
    filter.add(LOAD_WORD, offset(libc::SKF_AD_OFF + libc::SKF_AD_MARK));
    filter.jump_if(MARK, Label::Drop);
    filter.add(half.0, half.1);
    filter.jump_if(DNS_PORT.into(), Label::Drop);
    match own {
        IpAddr::V4(own) => {
            filter.add(LOAD_WORD, V4_TO);
            filter.jump_if(own.to_bits(), Label::Drop);
            filter.add(AND, 0xff00_0000);
            filter.jump_if(u32::from(Ipv4Addr::LOCALHOST.octets()[0]) << 24, Label::Drop);
        }
        IpAddr::V6(own) => {
            filter.drop_v6(own, Label::NotOwn);
            filter.drop_v6(Ipv6Addr::LOCALHOST, Label::NotLoopback);
        }
    }
    filter.jump_always(Label::Pass);
    filter.finish(u32::try_from(PACKET_BYTES_MAX).unwrap_or_default())
}

/// Returns the machine's own addresses, one per family in use.
pub(super) fn own_addresses(ipv6: bool) -> impl Iterator<Item = IpAddr> {
    [Some(GUEST_ADDRESS.into()), ipv6.then_some(GUEST_ADDRESS_V6.into())].into_iter().flatten()
}

/// Converts the kernel's negative offset for data beside the packet.
fn offset(beside: libc::c_int) -> u32 {
    beside.cast_unsigned()
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Label {
    /// The next instruction.
    Next,
    Syn,
    NotOwn,
    NotLoopback,
    Drop,
    Pass,
}

/// A filter under construction. Jumps refer to labels that are marked later.
#[derive(Debug, Default)]
struct Filter {
    code: Vec<Instruction>,
    targets: Vec<(Label, usize)>,
}

#[derive(Debug)]
struct Instruction {
    operation: u32,
    operand: u32,
    equal: Label,
    different: Label,
}

impl Filter {
    fn add(&mut self, operation: u32, operand: u32) {
        self.code.push(Instruction { operation, operand, equal: Label::Next, different: Label::Next });
    }

    fn jump_if(&mut self, operand: u32, equal: Label) {
        self.code.push(Instruction { operation: JUMP_EQUAL, operand, equal, different: Label::Next });
    }

    fn jump_unless(&mut self, operand: u32, different: Label) {
        self.code.push(Instruction { operation: JUMP_EQUAL, operand, equal: Label::Next, different });
    }

    fn jump_always(&mut self, to: Label) {
        self.code.push(Instruction { operation: JUMP_EQUAL, operand: 0, equal: to, different: to });
    }

    fn mark(&mut self, label: Label) {
        self.targets.push((label, self.code.len()));
    }

    /// Adds instructions that drop a packet to `address`; `other` marks the instruction after them.
    fn drop_v6(&mut self, address: Ipv6Addr, other: Label) {
        let bits = address.to_bits();
        for (at, shift) in [(0, 96), (4, 64), (8, 32), (12, 0)] {
            self.add(LOAD_WORD, V6_TO + at);
            #[expect(clippy::cast_possible_truncation, reason = "it selects one of the four words")]
            self.jump_unless((bits >> shift) as u32, other);
        }
        self.jump_always(Label::Drop);
        self.mark(other);
    }

    /// Adds the two ends, and fills in the distance of each jump. A filter that reaches its end drops the packet; one
    /// that passes it passes its first `pass_bytes` bytes.
    fn finish(mut self, pass_bytes: u32) -> Vec<SockFilter> {
        self.mark(Label::Drop);
        self.add(RETURN, 0);
        self.mark(Label::Pass);
        self.add(RETURN, pass_bytes);
        let distance = |at: usize, label| {
            let target = self.targets.iter().find(|(marked, _)| *marked == label).map_or(at + 1, |(_, target)| *target);
            u8::try_from(target.saturating_sub(at + 1)).unwrap_or_default()
        };
        let assemble = |(at, one): (usize, &Instruction)| {
            let operation = u16::try_from(one.operation).unwrap_or_default();
            SockFilter::new(operation, distance(at, one.equal), distance(at, one.different), one.operand)
        };
        self.code.iter().enumerate().map(assemble).collect()
    }
}

#[cfg(test)]
mod tests;
