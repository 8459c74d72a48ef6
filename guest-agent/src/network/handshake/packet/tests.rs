// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests with packets that a Linux kernel has sent, and with all kinds of damaged ones.

use super::*;

/// A SYN to 192.0.2.7:8080, and one to [2001:db8::7]:8080.
pub(crate) const SYN_V4: &str = "4500003c2fd240004006f1e00a004d02c0000207\
    c69f1f90fce8710d00000000a002ffd7193800000204ffd70402080ac6330d7e000000000103030a";
pub(crate) const SYN_V6: &str = "600dbe3100280640fd00007700000000000000000000000220010db8\
    000000000000000000000007c55f1f9053f1e09800000000a002ffc42b6800000204ffc40402080aa2b7572f000000000103030a";

/// Offset of the TCP header in each of the packets.
const V4: usize = 20;
const V6: usize = 40;

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect()
}

pub(crate) fn syn(hex: &str) -> Syn {
    match parse(&bytes(hex)) {
        Some(Captured::Syn(syn)) => syn,
        other => panic!("{other:?} is not a SYN"),
    }
}

/// Sums up words as the receiver of a packet does; a valid checksum makes the sum 0xffff.
fn is_valid(message: &[u8], pseudo_header: &[u8]) -> bool {
    assert_eq!(message.len() % 2, 0);
    let all = [pseudo_header, message].concat();
    let total: u64 = all.chunks_exact(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    total.is_multiple_of(0xffff)
}

/// Checks the length and the checksum of a packet, and returns what follows its IP header.
fn checked(packet: &Packet) -> &[u8] {
    let bytes = &packet.bytes;
    let at = if packet.to.is_ipv4() { V4 } else { V6 };
    let (addresses, protocol, length) = if packet.to.is_ipv4() {
        (&bytes[12..20], bytes[9], usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) - V4)
    } else {
        (&bytes[8..40], bytes[6], usize::from(u16::from_be_bytes([bytes[4], bytes[5]])))
    };
    let body = &bytes[at..];
    assert_eq!(body.len(), length);
    let mut pseudo_header = addresses.to_vec();
    pseudo_header.extend([0, 0, 0, u8::try_from(length).unwrap(), 0, 0, 0, protocol]);
    assert!(is_valid(body, if protocol == ICMP { &[] } else { &pseudo_header }), "{bytes:02x?}");
    body
}

#[test]
fn syn_has_its_ends_and_its_whole_header() {
    let v4 = syn(SYN_V4);
    assert_eq!(v4.ends, Ends::new("10.0.77.2:50847".parse().unwrap(), "192.0.2.7:8080".parse().unwrap()));
    let v6 = syn(SYN_V6);
    assert_eq!(v6.ends, Ends::new("[fd00:77::2]:50527".parse().unwrap(), "[2001:db8::7]:8080".parse().unwrap()));
    assert_eq!((v4.sequence(), v6.sequence()), (0xfce8_710d, 0x53f1_e098));
    assert_eq!((v4.header.len(), v6.header.len()), (40, 40));
}

#[test]
fn syn_is_sent_again_without_ip_options_and_data() {
    for (hex, at) in [(SYN_V4, V4), (SYN_V6, V6)] {
        let original = bytes(hex);
        let mut longer = [original.clone(), vec![7; 1000]].concat();
        if at == V4 {
            // Four bytes of IP options, which do nothing.
            longer[0] += 1;
            longer.splice(20..20, [1, 1, 1, 1]);
        }
        let Some(Captured::Syn(parsed)) = parse(&longer) else { panic!("{hex} is not a SYN") };
        assert_eq!(parsed, syn(hex));
        let again = parsed.again();
        let mut header = checked(&again).to_vec();
        // The kernel leaves the checksum on the loopback device to the receiver.
        header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&original[at + TCP_CHECKSUM..at + TCP_CHECKSUM + 2]);
        assert_eq!((header.as_slice(), again.to), (&original[at..], parsed.ends.server.ip()));
    }
}

#[test]
fn refusal_acknowledges_the_syn_and_resets() {
    for hex in [SYN_V4, SYN_V6] {
        let syn = syn(hex);
        let refusal = syn.refusal();
        let header = checked(&refusal);
        assert_eq!(refusal.to, syn.ends.client.ip());
        assert_eq!(header[..4], [[0x1f, 0x90], syn.ends.client.port().to_be_bytes()].concat());
        assert_eq!(header[8..12], (syn.sequence() + 1).to_be_bytes());
        assert_eq!(header[12..14], [0x50, RST | ACK]);
    }
}

#[test]
fn unreachable_quotes_the_syn() {
    for (hex, at, kind) in [(SYN_V4, V4, [3, 1]), (SYN_V6, V6, [1, 3])] {
        let syn = syn(hex);
        let unreachable = syn.unreachable();
        let message = checked(&unreachable);
        assert_eq!((unreachable.to, &message[..2]), (syn.ends.client.ip(), &kind[..]));
        assert_eq!(message[8..], syn.again().bytes);
        // The kernel finds the program's socket by these bytes: the ports and the sequence number.
        assert_eq!(message[8 + at..8 + at + 8], bytes(hex)[at..at + 8]);
    }
}

#[test]
fn only_the_answer_to_a_probe_ends_an_attempt() {
    for hex in [SYN_V4, SYN_V6] {
        let ends = syn(hex).ends;
        let probe = ends.probe();
        assert_eq!(checked(&probe)[12..14], [0x50, 0]);
        assert_eq!(parse(&probe.bytes), None);
        let answer = |acknowledged, flags| parse(&segment(ends.client, ends.server, 0, acknowledged, flags).bytes);
        assert_eq!(answer(PROBE, RST | ACK), Some(Captured::Gone(ends)));
        assert_eq!(answer(PROBE + 1, RST | ACK), None);
        for flags in [0, ACK, RST, FIN | ACK, SYN | ACK, SYN | RST | ACK] {
            assert_eq!(answer(PROBE, flags), None, "{flags:#x}");
        }
    }
}

#[test]
fn other_segments_and_protocols_are_ignored() {
    for (hex, at, protocol) in [(SYN_V4, V4, 9), (SYN_V6, V6, 6)] {
        let mut packet = bytes(hex);
        for flags in (0..=u8::MAX).filter(|flags| flags & (FIN | SYN | RST | ACK) != SYN) {
            packet[at + 13] = flags;
            assert_eq!(parse(&packet), None, "{flags:#x}");
        }
        let mut packet = bytes(hex);
        packet[protocol] = 17;
        assert_eq!(parse(&packet), None);
    }
    let mut later_fragment = bytes(SYN_V4);
    later_fragment[7] = 1;
    assert_eq!(parse(&later_fragment), None);
}

/// Parses any bytes, and checks all that can be built from them.
fn check_any(packet: &[u8]) {
    match parse(packet) {
        Some(Captured::Syn(syn)) => {
            assert!((TCP_HEADER_BYTES..=60).contains(&syn.header.len()));
            let again = syn.again();
            checked(&again);
            assert!(again.bytes.len() <= PACKET_BYTES_MAX);
            checked(&syn.refusal());
            checked(&syn.unreachable());
            checked(&syn.ends.probe());
            let Some(Captured::Syn(mut second)) = parse(&again.bytes) else { panic!("{again:02x?} is not a SYN") };
            second.header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&syn.header[TCP_CHECKSUM..TCP_CHECKSUM + 2]);
            assert_eq!(second, syn);
        }
        Some(Captured::Gone(ends)) => {
            checked(&ends.probe());
        }
        None => {}
    }
}

#[test]
fn damaged_packets_are_parsed_within_their_bounds() {
    for hex in [SYN_V4, SYN_V6] {
        let packet = bytes(hex);
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            for value in 0..=u8::MAX {
                changed[at] = value;
                check_any(&changed);
                check_any(&changed[..at]);
                check_any(&[&changed[..], &[value; 60]].concat());
            }
        }
    }
}

#[test]
fn random_packets_are_parsed_within_their_bounds() {
    // The numbers are those of xorshift64, which needs no crate.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        let mut packet = Vec::new();
        while packet.len() < PACKET_BYTES_MAX {
            for (left, right) in [(true, 13), (false, 7), (true, 17)] {
                random ^= if left { random << right } else { random >> right };
            }
            packet.extend(random.to_ne_bytes());
        }
        // Random bytes would hardly ever be a SYN.
        let (at, first, protocol) = if random & 1 == 0 { (V4, 0x45, 9) } else { (V6, 0x60, 6) };
        packet[0] = first;
        packet[protocol] = TCP;
        packet[6] &= if at == V4 { 0 } else { u8::MAX };
        packet[7] &= if at == V4 { 0 } else { u8::MAX };
        packet[at + 13] = SYN;
        packet.truncate(usize::try_from(random >> 32).unwrap() % (PACKET_BYTES_MAX + 1));
        check_any(&packet);
    }
}
