// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes every address local (AnyIP): adds addresses and routes to the loopback device through rtnetlink.
//!
//! Has the same effect as `ip address add OWN dev lo` and `ip route add local default dev lo src OWN table main`.

use std::{io, net::IpAddr, os::fd::AsRawFd};

use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket},
};

/// Buffer size for the kernel's answer, in bytes. The answer is an error number and a copy of the request.
const ANSWER_BYTES_MAX: usize = 4096;

/// Size of `struct nlmsghdr` in bytes.
const HEADER_BYTES: usize = 16;

/// `IFA_FLAGS`, from the kernel's `include/uapi/linux/if_addr.h`.
const IFA_FLAGS: u16 = 8;

/// Gives the loopback device the machine's own address.
pub(super) fn add_address(own: IpAddr) -> io::Result<()> {
    let (family, octets) = parts(own);
    let bits = u8::try_from(octets.len() * 8).map_err(io::Error::other)?;
    let mut message = vec![family, bits, 0, libc::RT_SCOPE_HOST];
    message.extend(loopback()?.to_ne_bytes());
    attribute(&mut message, libc::IFA_LOCAL, &octets)?;
    attribute(&mut message, libc::IFA_ADDRESS, &octets)?;
    // No other machine can use the address, so the kernel need not check for duplicates.
    attribute(&mut message, IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes())?;
    request(libc::RTM_NEWADDR, &message)
}

/// Makes all addresses of `own`'s family local, with `own` as the source address of connections.
pub(super) fn add_default(own: IpAddr) -> io::Result<()> {
    let (family, octets) = parts(own);
    // The fields are: family, destination bits, source bits, type of service, table, origin, scope, type, flags.
    let table = libc::RT_TABLE_MAIN;
    let mut message = vec![family, 0, 0, 0, table, libc::RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL];
    message.extend([0; 4]);
    attribute(&mut message, libc::RTA_OIF, &loopback()?.to_ne_bytes())?;
    attribute(&mut message, libc::RTA_PREFSRC, &octets)?;
    request(libc::RTM_NEWROUTE, &message)
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    let (family, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    (u8::try_from(family).unwrap_or_default(), octets)
}

fn loopback() -> io::Result<u32> {
    Ok(if_nametoindex("lo")?)
}

/// Appends an attribute. The length of every value here is a multiple of four bytes, so no value needs padding.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let bytes = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    message.extend(bytes.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    Ok(())
}

/// Sends one request, and waits for the kernel's answer. An existing entry is not an error.
fn request(kind: u16, body: &[u8]) -> io::Result<()> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let bytes = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = bytes.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).map_err(io::Error::other)?.to_ne_bytes());
    // The sequence number and the port are zero, because this socket sends only one request.
    message.extend([0; 8]);
    message.extend(body);
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let read = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // The answer's header is followed by the negative error number.
    let number = answer.get(HEADER_BYTES..read).and_then(<[u8]>::first_chunk);
    match number.map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(number) if number == -libc::EEXIST => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
