// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the filters in this kernel, on sockets for which no capability is needed. A test cannot set the mark.

use std::{io::ErrorKind, os::unix::net::UnixDatagram};

use socket2::SockRef;

use super::{
    super::packet::tests::{SYN_V4, SYN_V6, bytes},
    *,
};

const PORT_AT: u32 = 2;
const FLAGS_AT: u32 = 13;
const ACKNOWLEDGED_AT: u32 = 8;

/// Returns the number of bytes of a packet that a filter passes, or 0 if it drops the packet.
fn passed(filter: &[SockFilter], packet: &[u8]) -> usize {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    SockRef::from(&receiver).attach_filter(filter).unwrap();
    sender.send(packet).unwrap();
    receiver.set_nonblocking(true).unwrap();
    match receiver.recv(&mut [0; 1000]) {
        Ok(bytes) => bytes,
        Err(fault) if fault.kind() == ErrorKind::WouldBlock => 0,
        Err(fault) => panic!("{fault}"),
    }
}

/// Returns the packet with other bytes from `at` on.
fn with(packet: &[u8], at: u32, bytes: &[u8]) -> Vec<u8> {
    let at = usize::try_from(at).unwrap();
    let mut packet = packet.to_vec();
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet
}

fn check_capture(own: IpAddr, hex: &str, tcp: u32, to: u32, local: &[IpAddr], remote: &[IpAddr]) {
    let (filter, syn) = (capture(own), bytes(hex));
    assert_eq!(passed(&filter, &syn), syn.len());
    assert_eq!(passed(&filter, &[&syn[..], &[7; 500]].concat()), PACKET_BYTES_MAX);
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    for address in local {
        assert_eq!(passed(&filter, &with(&syn, to, &octets(address))), 0, "{address}");
    }
    for address in remote {
        assert_eq!(passed(&filter, &with(&syn, to, &octets(address))), syn.len(), "{address}");
    }
    assert_eq!(passed(&filter, &with(&syn, tcp + PORT_AT, &[0, 53])), 0);
    for flags in 0..=u8::MAX {
        let is_syn = flags & (SYN | RST | ACK) == SYN;
        assert_eq!(passed(&filter, &with(&syn, tcp + FLAGS_AT, &[flags])) > 0, is_syn, "{flags:#x}");
    }
    let answer = with(&with(&syn, tcp + ACKNOWLEDGED_AT, &PROBE.to_be_bytes()), tcp + FLAGS_AT, &[RST | ACK]);
    assert_eq!(passed(&filter, &answer), syn.len());
    assert_eq!(passed(&filter, &with(&answer, tcp + FLAGS_AT, &[ACK])), 0);
    let protocol = if own.is_ipv4() { V4_PROTOCOL } else { V6_PROTOCOL };
    assert_eq!(passed(&filter, &with(&syn, protocol, &[17])), 0);
}

#[test]
fn capture_passes_only_syns_that_leave_the_machine_and_answers_to_probes() {
    let addresses = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
    let (local, remote) =
        (["10.0.77.2", "127.0.0.1", "127.9.9.9"], ["10.0.77.1", "10.0.77.3", "126.0.0.1", "128.0.0.1"]);
    check_capture(GUEST_ADDRESS.into(), SYN_V4, 20, V4_TO, &addresses(&local), &addresses(&remote));
    let (local, remote) = (["fd00:77::2", "::1"], ["fd00:77::1", "fd00:78::2", "::2", "::", "1::1"]);
    check_capture(GUEST_ADDRESS_V6.into(), SYN_V6, 40, V6_TO, &addresses(&local), &addresses(&remote));
}

#[test]
fn ip_options_do_not_hide_a_syn() {
    let mut syn = bytes(SYN_V4);
    syn[0] += 2;
    syn.splice(20..20, [1; 8]);
    assert_eq!(passed(&capture(GUEST_ADDRESS.into()), &syn), syn.len());
}

// QEMU's user-mode emulation, which runs the tests for aarch64, cannot detach a filter.
#[cfg(target_arch = "x86_64")]
#[test]
fn listener_leaves_an_unmarked_syn_unanswered() {
    use std::{
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use socket2::Socket;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to: SocketAddr = listener.local_addr().unwrap();
    drop(TcpStream::connect(to).unwrap());
    let socket = Socket::from(listener);
    socket.attach_filter(&super::listener()).unwrap();
    let fault = TcpStream::connect_timeout(&to, Duration::from_millis(100)).unwrap_err();
    assert_eq!(fault.kind(), ErrorKind::TimedOut);
    // Without the filter, the repeated SYN would be answered.
    socket.detach_filter().unwrap();
    drop(TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap());
}

#[test]
fn listener_passes_all_segments_but_syns() {
    let header = &bytes(SYN_V4)[20..];
    for flags in 0..=u8::MAX {
        let is_syn = flags & (SYN | ACK) == SYN;
        assert_eq!(passed(&listener(), &with(header, FLAGS_AT, &[flags])) == 0, is_syn, "{flags:#x}");
    }
}
