// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! DNS queries of guests and the answers to them, in the wire format of RFC 1035.
//!
//! Parses only queries with one question and without compression. Lists of addresses fit in the 512 bytes that every
//! resolver accepts over UDP. Answers have no EDNS record, so the resolver knows that EDNS is not supported.

use std::net::IpAddr;

use waggle_protocol::egress::{DNS_ANSWER_BYTES_MAX, DNS_DATAGRAM_BYTES_MAX, DNS_QUERY_BYTES_MAX};

use crate::domain::egress::{ANSWER_TTL_S, DomainName};

/// Length of a message's header, in bytes.
pub const HEADER_BYTES: usize = 12;

/// Length of an answer's record without its address, in bytes.
const RECORD_BYTES: usize = 12;

/// Maximum length of a name on the wire, in bytes.
pub(super) const WIRE_NAME_BYTES_MAX: usize = 255;

/// Maximum length of a label, in bytes.
pub(super) const LABEL_BYTES_MAX: u8 = 63;

/// Length of a question's type and class, in bytes.
const KIND_BYTES: usize = 4;

/// Bits of the header's flags.
pub(super) const RESPONSE: u16 = 0x8000;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const TRUNCATED: u16 = 0x0200;
pub(super) const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

pub(super) const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// Returns whether a type belongs to no record: zero, OPT, all "meta" and "query" types such as AXFR and ANY (RFC 6895,
/// section 3.1), and the reserved last type.
fn is_meta(kind: u16) -> bool {
    matches!(kind, 0 | 41 | 128..=255 | u16::MAX)
}

/// A compression pointer to the question's name.
pub(super) const QUESTION_NAME: [u8; 2] = [0xc0, 12];

/// The response code of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// The name exists; it may have no record of the requested type.
    NoError = 0,
    /// The query is invalid.
    FormErr = 1,
    /// The lookup failed; a retry may succeed.
    ServFail = 2,
    /// The name does not exist, is invalid, or is not allowed by the guest's policy.
    NxDomain = 3,
    /// The kind of query is not supported.
    NotImp = 4,
    /// The name is never asked for. Unlike [`Self::NxDomain`], this says nothing about the names below it (RFC 8020).
    Refused = 5,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    id: u16,
    flags: u16,
    /// The encoded question; the answer repeats these bytes.
    wire: Vec<u8>,
    /// The name, or `None` if it is not a valid host name.
    pub(super) name: Option<DomainName>,
    pub(super) kind: Kind,
}

/// The requested records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Addresses(Family),
    /// Records of another type.
    Records,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn contains(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Parses a query.
///
/// # Errors
/// The answer to an invalid or unsupported query, or `None` if the message must not be answered.
pub fn read(message: &[u8]) -> Result<Question, Option<Vec<u8>>> {
    let Some((header, rest)) = message.split_first_chunk::<HEADER_BYTES>() else { return Err(None) };
    let [i0, i1, f0, f1, q0, q1, ..] = *header;
    let (id, flags) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([f0, f1]));
    let refuse = |code| Err(Some(head(id, flags, code as u16, [0; 3]).to_vec()));
    if flags & RESPONSE != 0 || message.len() > DNS_QUERY_BYTES_MAX {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return refuse(Code::NotImp);
    }
    let question = (u16::from_be_bytes([q0, q1]) == 1).then(|| labels(rest)).flatten();
    let Some((labels, behind)) = question else { return refuse(Code::FormErr) };
    let Some(([t0, t1, c0, c1], _)) = behind.split_first_chunk::<KIND_BYTES>() else { return refuse(Code::FormErr) };
    let (kind, class) = (u16::from_be_bytes([*t0, *t1]), u16::from_be_bytes([*c0, *c1]));
    let wire_bytes = rest.len() - behind.len() + KIND_BYTES;
    let wire = rest.get(..wire_bytes).unwrap_or_default().to_vec();
    let name = host_name(&labels);
    let is_supported = class == CLASS_IN && !is_meta(kind);
    let kind = match kind {
        TYPE_A => Kind::Addresses(Family::V4),
        TYPE_AAAA => Kind::Addresses(Family::V6),
        _ => Kind::Records,
    };
    let question = Question { id, flags, wire, name, kind };
    if is_supported { Ok(question) } else { Err(Some(question.failure(Code::NotImp))) }
}

/// Returns the name with these labels, or `None` if it is not a valid host name.
fn host_name(labels: &[&[u8]]) -> Option<DomainName> {
    std::str::from_utf8(&labels.join(&b'.')).ok()?.parse().ok()
}

/// Parses an encoded name, or returns `None` if it is not a valid host name.
pub(super) fn read_name(wire: &[u8]) -> Option<DomainName> {
    let (labels, _) = labels(wire)?;
    host_name(&labels)
}

/// Parses a name; returns its labels, and the bytes after the name. A label that contains a dot is invalid, since it
/// would look like two labels in the joined name.
fn labels(mut rest: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (mut labels, before) = (Vec::new(), rest.len());
    loop {
        let (length, behind) = rest.split_first()?;
        let (label, behind) = behind.split_at_checked(usize::from(*length))?;
        if before - behind.len() > WIRE_NAME_BYTES_MAX || *length > LABEL_BYTES_MAX || label.contains(&b'.') {
            return None;
        }
        if label.is_empty() {
            return Some((labels, behind));
        }
        labels.push(label);
        rest = behind;
    }
}

impl Question {
    /// Builds an answer without records.
    #[must_use]
    pub fn failure(&self, code: Code) -> Vec<u8> {
        self.message(code as u16, [0; 2], &[])
    }

    /// Builds the answer with the addresses, which must be of the requested family and at most [`Self::addresses_max`].
    pub(super) fn addresses(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let records: Vec<u8> = addresses.iter().flat_map(|address| record(*address)).collect();
        self.message(0, [u16::try_from(addresses.len()).unwrap_or(u16::MAX), 0], &records)
    }

    /// Returns the number of addresses that fit in an answer over UDP.
    pub(super) fn addresses_max(&self, family: Family) -> usize {
        let record_bytes = RECORD_BYTES + if family == Family::V4 { 4 } else { 16 };
        DNS_DATAGRAM_BYTES_MAX.saturating_sub(HEADER_BYTES + self.wire.len()) / record_bytes
    }

    /// Returns the maximum length of the records in an answer, in bytes.
    pub(super) fn records_bytes_max(&self) -> usize {
        DNS_ANSWER_BYTES_MAX.saturating_sub(HEADER_BYTES + self.wire.len())
    }

    /// Builds an answer from its flags and code, the numbers of its answers and authorities, and their encoded records.
    pub(super) fn message(&self, flags: u16, [answers, authorities]: [u16; 2], records: &[u8]) -> Vec<u8> {
        let mut answer = head(self.id, self.flags, flags, [1, answers, authorities]).to_vec();
        answer.extend_from_slice(&self.wire);
        answer.extend_from_slice(records);
        answer
    }

    /// Builds a query with the same question to a name server.
    pub(super) fn query(&self, id: u16) -> Vec<u8> {
        let [[i0, i1], [f0, f1]] = [id, RECURSION_DESIRED].map(u16::to_be_bytes);
        let mut query = vec![i0, i1, f0, f1, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(&self.wire);
        query
    }

    /// Returns the encoded name of the question, and its type and class.
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        self.wire.split_at_checked(self.wire.len().saturating_sub(KIND_BYTES)).unwrap_or_default()
    }
}

fn record(address: IpAddr) -> Vec<u8> {
    let (kind, octets) = match address {
        IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
        IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
    };
    let bytes: u16 = if address.is_ipv4() { 4 } else { 16 };
    let mut record = QUESTION_NAME.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend(CLASS_IN.to_be_bytes());
    record.extend(ANSWER_TTL_S.to_be_bytes());
    record.extend(bytes.to_be_bytes());
    record.extend(octets);
    record
}

fn head(id: u16, query: u16, answer: u16, counts: [u16; 3]) -> [u8; HEADER_BYTES] {
    let flags = RESPONSE | (query & (OPCODE | RECURSION_DESIRED)) | RECURSION_AVAILABLE | answer;
    let ([[i0, i1], [f0, f1]], [q, a, n]) = ([id, flags].map(u16::to_be_bytes), counts.map(u16::to_be_bytes));
    [i0, i1, f0, f1, q[0], q[1], a[0], a[1], n[0], n[1], 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[&str], kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend([0, 0, u8::try_from(kind).unwrap(), 0, 1]);
        message
    }

    #[test]
    fn answers_hold_the_question_and_addresses() {
        let message = query(&["Index", "example"], TYPE_A);
        let question = read(&message).unwrap();
        assert_eq!(
            (question.name.as_ref().unwrap().as_str(), question.kind),
            ("index.example", Kind::Addresses(Family::V4))
        );
        let answer = question.addresses(&[[192, 0, 2, 1].into()]);
        let mut expected = vec![0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        expected.extend_from_slice(&message[12..]);
        expected.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        assert_eq!(answer, expected);
        let none = read(&query(&["a", "example"], TYPE_AAAA)).unwrap().failure(Code::NxDomain);
        assert_eq!((&none[2..8], none.len()), (&[0x81, 0x83, 0, 1, 0, 0][..], 12 + 15));
    }

    #[test]
    fn addresses_never_exceed_512_bytes() {
        let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)];
        let message = query(&labels.each_ref().map(String::as_str), TYPE_AAAA);
        let question = read(&message).unwrap();
        assert_eq!(question.name.as_ref().map(ToString::to_string), Some(labels.join(".")));
        let addresses: Vec<IpAddr> = (0..100).map(|last| [0x2000, 0, 0, 0, 0, 0, 0, last].into()).collect();
        let answer = question.addresses(&addresses[..question.addresses_max(Family::V6)]);
        assert_eq!((answer.len(), answer[7]), (12 + 259 + 8 * 28, 8));
    }

    #[test]
    fn invalid_queries_get_an_error_or_no_answer() {
        let code = |message: &[u8]| read(message).unwrap_err().map(|answer| answer[3] & 15);
        for (kind, name) in [(0, "none"), (41, "OPT"), (251, "IXFR"), (252, "AXFR"), (255, "ANY")] {
            assert_eq!(code(&query(&["a", "example"], kind)), Some(4), "{name}");
        }
        let plain = query(&["a"], TYPE_A);
        let spoilt = |at: usize, byte: u8| {
            let mut message = plain.clone();
            message[at] = byte;
            code(&message)
        };
        assert_eq!(spoilt(2, 0x28), Some(4), "an update");
        assert_eq!(spoilt(2, 0x80), None, "a response");
        assert_eq!(spoilt(5, 2), Some(1), "two questions");
        assert_eq!(spoilt(12, 0xc0), Some(1), "a pointer");
        assert_eq!(spoilt(13, b'.'), Some(1), "a dot within a label");
        assert_eq!(spoilt(plain.len() - 1, 3), Some(4), "another class");
        assert_eq!(code(&plain[..plain.len() - 1]), Some(1), "cut short");
        assert_eq!(code(&plain[..11]), None, "no header");
        let odd = read(&query(&["a b", "example"], TYPE_A)).unwrap();
        assert_eq!(odd.name, None, "an invalid host name");
        let root = read(&query(&[], TYPE_A)).unwrap();
        assert_eq!(root.name, None, "the root");
        let service = read(&query(&["_sip", "_tcp", "example"], 33)).unwrap();
        assert_eq!((service.name.unwrap().as_str(), service.kind), ("_sip._tcp.example", Kind::Records));
    }
}
