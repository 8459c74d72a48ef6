// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! DNS queries and answers in the wire format of RFC 1035.
//!
//! Parses only queries with one question and without compression, and writes only address records. An answer fits in
//! the 512 bytes that every resolver accepts over UDP. Answers have no EDNS record, so the resolver knows that EDNS is
//! not supported.

use std::net::IpAddr;

use waggle_protocol::egress::{DNS_ANSWER_BYTES_MAX, DNS_QUERY_BYTES_MAX};

use crate::domain::egress::{ANSWER_TTL_S, DomainName};

/// Length of a message's header, in bytes.
const HEADER_BYTES: usize = 12;

/// Length of an answer's record without its address, in bytes.
const RECORD_BYTES: usize = 12;

/// Maximum length of a name on the wire, in bytes.
const WIRE_NAME_BYTES_MAX: usize = 255;

/// Bits of the header's flags.
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// A compression pointer to the question's name.
const QUESTION_NAME: [u8; 2] = [0xc0, 12];

/// The response code of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Code {
    /// The name exists; it may have no addresses of the requested family.
    NoError = 0,
    /// The query is invalid.
    FormErr = 1,
    /// The lookup failed; a retry may succeed.
    ServFail = 2,
    /// The name does not exist, is invalid, or is not allowed by the guest's policy.
    NxDomain = 3,
    /// The kind of query is not supported.
    NotImp = 4,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Question {
    id: u16,
    flags: u16,
    /// The encoded question; the answer repeats these bytes.
    wire: Vec<u8>,
    /// The name, or `None` if it is not a valid host name.
    pub(super) name: Option<DomainName>,
    /// The family of the requested addresses.
    pub(super) family: Family,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
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
pub(super) fn read(message: &[u8]) -> Result<Question, Option<Vec<u8>>> {
    let Some((header, rest)) = message.split_first_chunk::<HEADER_BYTES>() else { return Err(None) };
    let [i0, i1, f0, f1, q0, q1, ..] = *header;
    let (id, flags) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([f0, f1]));
    let refuse = |code| Err(Some(head(id, flags, code, [0, 0]).to_vec()));
    if flags & RESPONSE != 0 || message.len() > DNS_QUERY_BYTES_MAX {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return refuse(Code::NotImp);
    }
    let question = (u16::from_be_bytes([q0, q1]) == 1).then(|| labels(rest)).flatten();
    let Some((labels, behind)) = question else { return refuse(Code::FormErr) };
    let Some(([t0, t1, c0, c1], _)) = behind.split_first_chunk::<4>() else { return refuse(Code::FormErr) };
    let (kind, class) = (u16::from_be_bytes([*t0, *t1]), u16::from_be_bytes([*c0, *c1]));
    let wire_bytes = rest.len() - behind.len() + 4;
    let wire = rest.get(..wire_bytes).unwrap_or_default().to_vec();
    let name = std::str::from_utf8(&labels.join(&b'.')).ok().and_then(|name| name.parse().ok());
    let question = |family| Question { id, flags, wire, name, family };
    match (class, kind) {
        (CLASS_IN, TYPE_A) => Ok(question(Family::V4)),
        (CLASS_IN, TYPE_AAAA) => Ok(question(Family::V6)),
        _ => Err(Some(question(Family::V4).answer(Code::NotImp, &[]))),
    }
}

/// Parses a name; returns its labels, and the bytes after the name. A label that contains a dot is invalid, since it
/// would look like two labels in the joined name.
fn labels(mut rest: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (mut labels, before) = (Vec::new(), rest.len());
    loop {
        let (length, behind) = rest.split_first()?;
        let (label, behind) = behind.split_at_checked(usize::from(*length))?;
        if before - behind.len() > WIRE_NAME_BYTES_MAX || *length > 63 || label.contains(&b'.') {
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
    /// Builds the answer with the first addresses that fit. All addresses must be of the requested family.
    pub(super) fn answer(&self, code: Code, addresses: &[IpAddr]) -> Vec<u8> {
        let mut records = Vec::new();
        let mut count: u16 = 0;
        for address in addresses.iter().take(self.addresses_max()) {
            records.extend(record(*address));
            count += 1;
        }
        let [c0, c1] = count.to_be_bytes();
        let mut answer = head(self.id, self.flags, code, [c0, c1]).to_vec();
        // `head` leaves the count of questions at zero.
        if let Some(count) = answer.get_mut(5) {
            *count = 1;
        }
        answer.extend_from_slice(&self.wire);
        answer.extend(records);
        answer
    }

    /// Returns the number of addresses that fit in an answer.
    pub(super) fn addresses_max(&self) -> usize {
        let record_bytes = RECORD_BYTES + if self.family == Family::V4 { 4 } else { 16 };
        DNS_ANSWER_BYTES_MAX.saturating_sub(HEADER_BYTES + self.wire.len()) / record_bytes
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

fn head(id: u16, flags: u16, code: Code, answers: [u8; 2]) -> [u8; HEADER_BYTES] {
    let flags = RESPONSE | (flags & (OPCODE | RECURSION_DESIRED)) | RECURSION_AVAILABLE | code as u16;
    let ([i0, i1], [f0, f1], [a0, a1]) = (id.to_be_bytes(), flags.to_be_bytes(), answers);
    [i0, i1, f0, f1, 0, 0, a0, a1, 0, 0, 0, 0]
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
        assert_eq!((question.name.as_ref().unwrap().as_str(), question.family), ("index.example", Family::V4));
        let answer = question.answer(Code::NoError, &[[192, 0, 2, 1].into()]);
        let mut expected = vec![0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        expected.extend_from_slice(&message[12..]);
        expected.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        assert_eq!(answer, expected);
        let none = read(&query(&["a", "example"], TYPE_AAAA)).unwrap().answer(Code::NxDomain, &[]);
        assert_eq!((&none[2..8], none.len()), (&[0x81, 0x83, 0, 1, 0, 0][..], 12 + 15));
    }

    #[test]
    fn answers_never_exceed_512_bytes() {
        let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)];
        let message = query(&labels.each_ref().map(String::as_str), TYPE_AAAA);
        let question = read(&message).unwrap();
        assert_eq!(question.name.as_ref().map(ToString::to_string), Some(labels.join(".")));
        let addresses: Vec<IpAddr> = (0..100).map(|last| [0x2000, 0, 0, 0, 0, 0, 0, last].into()).collect();
        let answer = question.answer(Code::NoError, &addresses);
        assert_eq!((answer.len(), answer[7]), (12 + 259 + 8 * 28, 8));
    }

    #[test]
    fn invalid_queries_get_an_error_or_no_answer() {
        let code = |message: &[u8]| read(message).unwrap_err().map(|answer| answer[3] & 15);
        assert_eq!(code(&query(&["a", "example"], 15)), Some(4), "mail exchangers");
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
    }
}
