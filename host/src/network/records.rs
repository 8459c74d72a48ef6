// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Responses of name servers, in the wire format of RFC 1035, and the answers to guests that are made from them.
//!
//! The owner of a domain chooses the records, so they may be hostile. Every record is parsed and written again: names
//! without compression, a limited TTL, and only what the guest asked for. Guests receive addresses only from lookups of
//! addresses, which grant connections to them; so the answers contain no other section, and services no address hints.
//!
//! An alias can lead to a name that the guest may not look up. So the policy is asked about every name of an answer.

mod targets;

use self::targets::Targets;
pub use self::targets::{MayLeadTo, Target};
use super::dns::{
    CLASS_IN, HEADER_BYTES, LABEL_BYTES_MAX, OPCODE, QUESTION_NAME, Question, RESPONSE, TRUNCATED, WIRE_NAME_BYTES_MAX,
};
use crate::domain::egress::ANSWER_TTL_S;

/// The code of a response, a part of its flags.
const CODE: u16 = 0x000f;

const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_DNAME: u16 = 39;

/// Keys of the parameters of a service (RFC 9460, section 14.3.2).
const MANDATORY: u16 = 0;
const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;

/// Maximum number of pointers in a name. A name with a pointer after each label has one less.
const POINTERS_MAX: usize = 128;

/// The reason why a response is not relayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RelayFault {
    /// The response is not valid, or leads to too many names.
    Invalid,
    /// The response leads to a name of which the guest may get no records.
    Denied,
}

/// A response that answers a certain query.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    message: &'a [u8],
    flags: u16,
    /// The numbers of records in the answer and in the authority section.
    counts: [u16; 2],
    /// The position of the first record.
    records_at: usize,
}

impl<'a> Response<'a> {
    /// Reads the header and the question of a message, or returns `None` if the message does not answer the query.
    #[must_use]
    pub fn read(message: &'a [u8], id: u16, question: &Question) -> Option<Self> {
        let mut reader = Reader { message, at: 0, end: message.len() };
        let (its_id, flags, questions) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let counts = [reader.u16()?, reader.u16()?];
        reader.take(HEADER_BYTES - reader.at)?;
        let (name, kind) = question.parts();
        let is_same = reader.take(name.len())?.eq_ignore_ascii_case(name) && reader.take(kind.len())? == kind;
        let is_answer = its_id == id && flags & (RESPONSE | OPCODE) == RESPONSE && questions == 1 && is_same;
        is_answer.then_some(Self { message, flags, counts, records_at: reader.at })
    }

    /// Whether the server had more records than fit, so that they must be asked for over TCP.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.flags & TRUNCATED != 0
    }

    /// The response code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.flags & CODE
    }

    /// Builds the answer to the guest.
    ///
    /// # Errors
    /// The response is invalid, or leads to a name that is not allowed.
    pub fn answer(&self, question: &Question, may_lead_to: &MayLeadTo<'_>) -> Result<Vec<u8>, RelayFault> {
        let mut targets = Targets::new(question, may_lead_to);
        let mut reader = Reader { message: self.message, at: self.records_at, end: self.message.len() };
        let (mut records, mut counts, mut flags) = (Vec::new(), [0; 2], self.code());
        let [answers, authorities] = self.counts;
        for (is_answer, count) in [(true, answers), (false, authorities)] {
            for _ in 0..count {
                let record = reader.record().ok_or(RelayFault::Invalid)?;
                if !record.is_kept(question, is_answer) {
                    continue;
                }
                let data = record.data(self.message).ok_or(RelayFault::Invalid)?;
                if is_answer {
                    targets.check(&record.owner)?;
                    if matches!(record.kind, TYPE_CNAME | TYPE_DNAME) {
                        targets.check(&data)?;
                    }
                }
                if flags & TRUNCATED != 0 {
                    continue;
                }
                let record = record.encode(&data, question).ok_or(RelayFault::Invalid)?;
                if records.len() + record.len() > question.records_bytes_max() {
                    flags |= TRUNCATED;
                    continue;
                }
                records.extend(record);
                let [answers, authorities] = &mut counts;
                *(if is_answer { answers } else { authorities }) += 1;
            }
        }
        Ok(question.message(flags, counts, &records))
    }
}

/// A record whose data is not parsed yet.
struct Record {
    owner: Vec<u8>,
    kind: u16,
    class: u16,
    ttl_s: u32,
    data_at: usize,
    data_end: usize,
}

impl Record {
    /// Whether the guest receives the record: it asked for this type, or the record leads to another name. Of the
    /// authority section, it needs only the record that tells how long a missing name or type may be cached.
    fn is_kept(&self, question: &Question, is_answer: bool) -> bool {
        let (_, kind) = question.parts();
        let is_requested = kind == [self.kind.to_be_bytes(), self.class.to_be_bytes()].concat();
        let is_other = if is_answer { matches!(self.kind, TYPE_CNAME | TYPE_DNAME) } else { self.kind == TYPE_SOA };
        is_answer && is_requested || is_other && self.class == CLASS_IN
    }

    fn data(&self, message: &[u8]) -> Option<Vec<u8>> {
        data(self.kind, Reader { message, at: self.data_at, end: self.data_end })
    }

    fn encode(&self, data: &[u8], question: &Question) -> Option<Vec<u8>> {
        let (name, _) = question.parts();
        let mut record =
            if self.owner.eq_ignore_ascii_case(name) { QUESTION_NAME.to_vec() } else { self.owner.clone() };
        // A TTL with the highest bit means zero (RFC 2181, section 8).
        let ttl_s = if self.ttl_s > u32::MAX / 2 { 0 } else { self.ttl_s.min(ANSWER_TTL_S) };
        record.extend(self.kind.to_be_bytes());
        record.extend(self.class.to_be_bytes());
        record.extend(ttl_s.to_be_bytes());
        record.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        record.extend(data);
        Some(record)
    }
}

/// A field of a record's data.
#[derive(Clone, Copy)]
enum Field {
    Name,
    Bytes(usize),
    /// Text with its length in one byte.
    Text,
    /// The parameters of a service, up to the end.
    Parameters,
    /// All bytes up to the end.
    Rest,
}

/// Returns the fields of a type's data. Servers may compress the names in these types (RFC 3597, section 4); the data
/// of other types has the same bytes in every message.
fn fields(kind: u16) -> &'static [Field] {
    use Field::{Bytes, Name, Parameters, Rest, Text};
    match kind {
        // NS, MD, MF, MB, MG, MR, PTR.
        2..=4 | 7..=9 | 12 | TYPE_CNAME | TYPE_DNAME => &[Name],
        TYPE_SOA => &[Name, Name, Bytes(20)],
        // MINFO, RP.
        14 | 17 => &[Name, Name],
        // MX, AFSDB, RT, KX.
        15 | 18 | 21 | 36 => &[Bytes(2), Name],
        // SIG, NXT.
        24 => &[Bytes(18), Name, Rest],
        30 => &[Name, Rest],
        // PX.
        26 => &[Bytes(2), Name, Name],
        // SRV.
        33 => &[Bytes(6), Name],
        // NAPTR.
        35 => &[Bytes(4), Text, Text, Text, Name],
        // SVCB, HTTPS.
        64 | 65 => &[Bytes(2), Name, Parameters],
        _ => &[Rest],
    }
}

/// Parses the data of a record and encodes it again.
fn data(kind: u16, mut reader: Reader<'_>) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    for field in fields(kind) {
        match field {
            Field::Name => data.extend(reader.name()?),
            Field::Bytes(bytes) => data.extend(reader.take(*bytes)?),
            Field::Text => {
                let bytes = reader.u8()?;
                data.push(bytes);
                data.extend(reader.take(bytes.into())?);
            }
            Field::Parameters => parameters(&mut reader, &mut data)?,
            Field::Rest => data.extend(reader.rest()?),
        }
    }
    (reader.at == reader.end).then_some(data)
}

/// Copies the parameters of a service without address hints, also where the record calls the hints mandatory.
fn parameters(reader: &mut Reader<'_>, data: &mut Vec<u8>) -> Option<()> {
    let is_hint = |key| matches!(key, IPV4_HINT | IPV6_HINT);
    let mut previous = None;
    while reader.at < reader.end {
        let key = reader.u16()?;
        let bytes = reader.u16()?;
        let mut value = reader.take(bytes.into())?.to_vec();
        // The keys are in ascending order (RFC 9460, section 2.2).
        if previous.replace(key) >= Some(key) {
            return None;
        }
        if key == MANDATORY {
            let (keys, odd) = value.as_chunks::<2>();
            let keys = keys.iter().filter(|key| !is_hint(u16::from_be_bytes(**key)));
            value = odd.is_empty().then(|| keys.flatten().copied().collect())?;
        }
        if !is_hint(key) && (key != MANDATORY || !value.is_empty()) {
            data.extend(key.to_be_bytes());
            data.extend(u16::try_from(value.len()).ok()?.to_be_bytes());
            data.extend(value);
        }
    }
    Some(())
}

/// A position in a message, and the end of the part that is read.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.end)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn rest(&mut self) -> Option<&'a [u8]> {
        self.take(self.end.checked_sub(self.at)?)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    fn record(&mut self) -> Option<Record> {
        let owner = self.name()?;
        let (kind, class, ttl_s) = (self.u16()?, self.u16()?, self.u32()?);
        let data_bytes = self.u16()?;
        let data_at = self.at;
        self.take(data_bytes.into())?;
        Some(Record { owner, kind, class, ttl_s, data_at, data_end: self.at })
    }

    /// Reads a name and returns it without compression. A pointer must lead to a place before the part of the name that
    /// is being read, so that no name is endless.
    fn name(&mut self) -> Option<Vec<u8>> {
        const POINTER: u8 = 0xc0;
        let (mut name, mut at, mut part_at, mut behind) = (Vec::new(), self.at, self.at, None);
        let mut pointers = 0..POINTERS_MAX;
        loop {
            let length = *self.message.get(at)?;
            if length >= POINTER {
                let target = usize::from(length - POINTER) << 8 | usize::from(*self.message.get(at + 1)?);
                if target >= part_at {
                    return None;
                }
                pointers.next()?;
                behind = behind.or(Some(at + 2));
                (at, part_at) = (target, target);
                continue;
            }
            let next = at + 1 + usize::from(length);
            name.extend_from_slice(self.message.get(at..next)?);
            if length > LABEL_BYTES_MAX || name.len() > WIRE_NAME_BYTES_MAX {
                return None;
            }
            at = next;
            if length == 0 {
                self.at = behind.unwrap_or(at);
                return (self.at <= self.end).then_some(name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
