// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Responses of name servers, whose records are chosen by the owners of domains, and the answers that guests get. An
//! answer must be valid, short, and without addresses, and relaying it once more must change nothing.
//!
//! The first byte selects the type of the question, and the rest is the response behind its header and its question,
//! with the numbers of records in its first four bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waggle_fuzz::network::{
    dns::{self, HEADER_BYTES, Question},
    records::Response,
};
use waggle_protocol::egress::DNS_ANSWER_BYTES_MAX;

/// The types of the questions: NS, CNAME, SOA, PTR, MX, TXT, SIG, NXT, SRV, NAPTR, DNAME, SVCB, HTTPS, CAA, and an
/// unknown one.
const TYPES: [u16; 15] = [2, 5, 6, 12, 15, 16, 24, 30, 33, 35, 39, 64, 65, 257, 65000];

/// The names of the question, as the guest and the server write it.
const NAMES: [&[u8]; 2] = [b"\x03BEE\x07example\0", b"\x03bee\x07EXAMPLE\0"];

/// The types of the records of which an answer contains any, apart from the requested ones.
const CNAME: u16 = 5;
const SOA: u16 = 6;
const DNAME: u16 = 39;

/// The types of the records with parameters of services.
const SERVICES: [u16; 2] = [64, 65];

/// The keys of the parameters with addresses.
const HINTS: [u16; 2] = [4, 6];

fuzz_target!(|input: &[u8]| {
    let Some(([which, a0, a1, n0, n1], records)) = input.split_first_chunk::<5>() else { return };
    let kind = TYPES[usize::from(*which) % TYPES.len()];
    let [asked, answered] = NAMES.map(|name| [name, &kind.to_be_bytes(), &[0, 1]].concat());
    let query = [&[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &asked[..]].concat();
    let question = dns::read(&query).expect("a valid query");
    let response = [&[1, 2, 0x81, 0x80, 0, 1, *a0, *a1, *n0, *n1, 9, 9], &answered[..], records].concat();
    let Some(answer) = relay(&response, &question) else { return };
    assert!(answer.len() <= DNS_ANSWER_BYTES_MAX);
    assert_eq!(answer[HEADER_BYTES..query.len()], query[HEADER_BYTES..]);
    for (found, data) in records_of(&answer, query.len()) {
        assert!([kind, CNAME, SOA, DNAME].contains(&found));
        assert!(!SERVICES.contains(&found) || !keys(data).iter().any(|key| HINTS.contains(key)));
    }
    // Apart from the flags: what was truncated before has all its records now.
    const COUNTS_AT: usize = 4;
    assert_eq!(relay(&answer, &question).expect("a valid answer")[COUNTS_AT..], answer[COUNTS_AT..]);
});

fn relay(response: &[u8], question: &Question) -> Option<Vec<u8>> {
    const ID: u16 = 0x0102;
    Response::read(response, ID, question).expect("the response to the query").answer(question, &|_target| true).ok()
}

/// Returns the types and the data of an answer's records. Its names have no pointers except whole ones.
fn records_of(answer: &[u8], mut at: usize) -> Vec<(u16, &[u8])> {
    let mut records = Vec::new();
    while at < answer.len() {
        at = name_end(answer, at);
        let data_at = at + 10;
        let data_end = data_at + usize::from(number(answer, at + 8));
        records.push((number(answer, at), &answer[data_at..data_end]));
        at = data_end;
    }
    records
}

/// Returns the keys of a service's parameters, also those that are called mandatory.
fn keys(data: &[u8]) -> Vec<u16> {
    let (mut keys, mut at) = (Vec::new(), name_end(data, 2));
    while at < data.len() {
        let (key, value_at) = (number(data, at), at + 4);
        at = value_at + usize::from(number(data, at + 2));
        keys.push(key);
        if key == 0 {
            keys.extend((value_at..at).step_by(2).map(|key_at| number(data, key_at)));
        }
    }
    keys
}

fn name_end(bytes: &[u8], mut at: usize) -> usize {
    while (1..64).contains(&bytes[at]) {
        at += 1 + usize::from(bytes[at]);
    }
    at + if bytes[at] == 0 { 1 } else { 2 }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
