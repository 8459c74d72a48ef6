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
    dns::{self, Question},
    records::Response,
};
use waggle_protocol::egress::DNS_ANSWER_BYTES_MAX;

/// The types of the questions: NS, CNAME, SOA, PTR, MX, TXT, SRV, NAPTR, DNAME, SVCB, HTTPS, CAA, and an unknown one.
const TYPES: [u16; 13] = [2, 5, 6, 12, 15, 16, 33, 35, 39, 64, 65, 257, 65000];

/// The names of the question, as the guest and the server write it.
const NAMES: [&[u8]; 2] = [b"\x03BEE\x07example\0", b"\x03bee\x07EXAMPLE\0"];

/// Length of a header, in bytes.
const HEADER_BYTES: usize = 12;

/// The types of the records of which an answer contains any, apart from the requested ones.
const CNAME: u16 = 5;
const SOA: u16 = 6;
const DNAME: u16 = 39;

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
    assert_eq!(types(&answer, query.len()).filter(|found| ![kind, CNAME, SOA, DNAME].contains(found)).count(), 0);
    // Apart from the flags: what was truncated before has all its records now.
    const COUNTS_AT: usize = 4;
    assert_eq!(relay(&answer, &question).expect("a valid answer")[COUNTS_AT..], answer[COUNTS_AT..]);
});

fn relay(response: &[u8], question: &Question) -> Option<Vec<u8>> {
    const ID: u16 = 0x0102;
    Response::read(response, ID, question).expect("the response to the query").answer(question)
}

/// Returns the types of an answer's records. Its names have no pointers except whole ones.
fn types(answer: &[u8], mut at: usize) -> impl Iterator<Item = u16> {
    let mut types = Vec::new();
    while at < answer.len() {
        while (1..64).contains(&answer[at]) {
            at += 1 + usize::from(answer[at]);
        }
        at += if answer[at] == 0 { 1 } else { 2 };
        types.push(u16::from_be_bytes([answer[at], answer[at + 1]]));
        at += 10 + usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
    }
    types.into_iter()
}
