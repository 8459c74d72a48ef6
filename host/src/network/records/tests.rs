// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Responses of honest and of hostile servers, and the answers that guests get.

use super::{
    super::dns::{self, Question},
    targets::TARGETS_MAX,
    *,
};
use crate::domain::egress::DomainName;

const ID: u16 = 0x1234;
const MX: u16 = 15;
const TXT: u16 = 16;
const SRV: u16 = 33;
const NAPTR: u16 = 35;
const HTTPS: u16 = 65;

/// Encodes a name without compression.
fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

fn question(text: &str, kind: u16) -> Question {
    let [high, low] = kind.to_be_bytes();
    let query = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &name(text)[..], &[high, low, 0, 1]].concat();
    dns::read(&query).unwrap()
}

/// A record of the class IN with a TTL of a day.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let bytes = u16::try_from(data.len()).unwrap();
    [owner, &kind.to_be_bytes(), &[0, 1, 0, 1, 0x51, 0x80], &bytes.to_be_bytes(), data].concat()
}

/// The record as guests get it.
fn relayed(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = record(owner, kind, data);
    record[owner.len() + 4..owner.len() + 8].copy_from_slice(&60_u32.to_be_bytes());
    record
}

/// A response with these records as answers, authorities and additional records.
fn response(question: &Question, code: u8, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let counts = sections.map(|records| u16::try_from(records.len()).unwrap().to_be_bytes());
    let mut message = question.query(ID);
    message[2] |= 0x80;
    message[3] = code;
    message[6..12].copy_from_slice(&counts.concat());
    message.extend(sections.concat().concat());
    message
}

/// The records of the answer to a guest, with the numbers of answers, authorities and additional records.
fn answer(question: &Question, response: &[u8]) -> Option<([u8; 3], Vec<u8>)> {
    let answer = Response::read(response, ID, question)?.answer(question, &|_target| true).ok()?;
    let records_at = question.query(ID).len();
    assert_eq!(answer[..2], [7, 7], "the guest's id");
    assert_eq!(answer[12..records_at], question.query(ID)[12..], "the guest's question");
    Some(([answer[7], answer[9], answer[11]], answer[records_at..].to_vec()))
}

#[test]
fn records_are_relayed_with_whole_names_and_a_limited_ttl() {
    let question = question("bee.example", MX);
    // The mail server is in the domain of the question, which begins at 12.
    let mail = |owner: &[u8]| record(owner, MX, b"\0\x0a\x04mail\xc0\x0c");
    let alias = record(b"\xc0\x0c", 5, b"\x03www\xc0\x0c");
    let message = response(&question, 0, [&[alias, mail(b"\xc0\x0c"), mail(b"\xC0\x10")], &[], &[]]);
    let whole = [b"\0\x0a", &name("mail.bee.example")[..]].concat();
    let expected = [
        relayed(&[0xc0, 12], 5, &name("www.bee.example")),
        relayed(&[0xc0, 12], MX, &whole),
        relayed(&name("example"), MX, &whole),
    ];
    assert_eq!(answer(&question, &message), Some(([3, 0, 0], expected.concat())));
}

#[test]
fn names_in_all_fields_are_expanded() {
    let check = |kind: u16, data: &[u8], expected: &[u8]| {
        let question = question("bee.example", kind);
        let message = response(&question, 0, [&[record(b"\xc0\x0c", kind, data)], &[], &[]]);
        let expected = relayed(&[0xc0, 12], kind, expected);
        assert_eq!(answer(&question, &message), Some(([1, 0, 0], expected)), "type {kind}");
    };
    check(
        SRV,
        b"\0\x01\0\x02\x13\xc4\x03sip\xc0\x0c",
        &[b"\0\x01\0\x02\x13\xc4", &name("sip.bee.example")[..]].concat(),
    );
    let naptr = b"\0\x01\0\x02\x01S\x07SIP+D2T\0";
    check(NAPTR, &[&naptr[..], b"\xc0\x10"].concat(), &[&naptr[..], &name("example")].concat());
    let times = [7; 20];
    let soa = [&name("ns.bee.example")[..], &name("me.example"), &times].concat();
    check(6, &[b"\x02ns\xc0\x0c\x02me\xc0\x10", &times[..]].concat(), &soa);
    // The obsolete SIG and NXT have a name between other bytes.
    check(
        24,
        &[&times[..18], b"\x02me\xc0\x10", b"\xc0\x0c"].concat(),
        &[&times[..18], &name("me.example"), b"\xc0\x0c"].concat(),
    );
    check(30, b"\x02me\xc0\x10\xc0\x0c", &[&name("me.example")[..], b"\xc0\x0c"].concat());
    check(TXT, b"\x03\xc0\x0cx", b"\x03\xc0\x0cx");
    check(257, b"\0\x05issueca.example", b"\0\x05issueca.example");
}

#[test]
fn guests_get_no_addresses_and_no_other_section() {
    let question = question("bee.example", 2);
    let at = b"\xc0\x0c";
    let (server, address) = (record(at, 2, b"\x02ns\xc0\x0c"), |kind, data: &[u8]| record(at, kind, data));
    let v4 = address(1, &[192, 0, 2, 1]);
    let v6 = address(28, &[7; 16]);
    let mut soa = [name("ns.example"), name("me.example"), vec![7; 20]].concat();
    let negative = record(&name("example"), 6, &soa);
    let sections: [&[Vec<u8>]; 3] =
        [&[v4.clone(), server.clone(), v6.clone()], &[server, v4.clone(), negative], &[v4, v6]];
    let message = response(&question, 0, sections);
    soa = relayed(&name("example"), 6, &soa);
    let expected = [relayed(at, 2, &name("ns.bee.example")), soa].concat();
    assert_eq!(answer(&question, &message), Some(([1, 1, 0], expected)));
}

#[test]
fn services_lose_their_address_hints() {
    let question = question("bee.example", HTTPS);
    let parameter = |key: u16, value: &[u8]| {
        [&key.to_be_bytes()[..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    };
    let (alpn, port) = (parameter(1, b"\x02h2"), parameter(3, b"\x01\xbb"));
    let (v4, v6, ech) = (parameter(4, &[192, 0, 2, 1]), parameter(6, &[7; 16]), parameter(5, b"key"));
    let check = |before: &[&[u8]], after: Option<&[&[u8]]>| {
        let service = |parameters: &[&[u8]]| [&b"\0\x01\0"[..], &parameters.concat()].concat();
        let message = response(&question, 0, [&[record(b"\xc0\x0c", HTTPS, &service(before))], &[], &[]]);
        let after = after.map(|after| ([1, 0, 0], relayed(b"\xc0\x0c", HTTPS, &service(after))));
        assert_eq!(answer(&question, &message), after, "{before:?}");
    };
    check(&[&alpn, &port, &v4, &ech, &v6], Some(&[&alpn, &port, &ech]));
    check(&[&parameter(0, &[0, 1, 0, 4]), &alpn, &v4], Some(&[&parameter(0, &[0, 1]), &alpn]));
    check(&[&parameter(0, &[0, 4, 0, 6]), &v4, &v6], Some(&[]));
    check(&[&v4, &alpn], None);
    check(&[&alpn, &alpn], None);
    check(&[&parameter(0, &[0, 1, 0]), &alpn], None);
    check(&[&alpn[..5]], None);
}

#[test]
fn response_to_another_query_is_ignored() {
    let own = question("bee.example", TXT);
    let text = record(b"\xc0\x0c", TXT, b"\x03bee");
    let message = response(&own, 0, [&[text], &[], &[]]);
    assert!(Response::read(&message, ID, &own).is_some());
    assert!(Response::read(&message, ID + 1, &own).is_none(), "another id");
    for (text, kind) in [("wasp.example", TXT), ("bee.example", MX), ("bee.example.example", TXT), ("bee", TXT)] {
        assert!(Response::read(&message, ID, &question(text, kind)).is_none(), "{text} {kind}");
    }
    // Types differ by the bit in which letters of different cases differ.
    let case = response(&question("bee.example", 97), 0, [&[], &[], &[]]);
    assert!(Response::read(&case, ID, &question("bee.example", HTTPS)).is_none());
    assert!(Response::read(&message, ID, &question("BEE.example", TXT)).is_some());
    for (at, byte, why) in [(2, 1, "a query"), (2, 0x89, "another operation"), (5, 0, "no question"), (5, 2, "two")] {
        let mut message = message.clone();
        message[at] = byte;
        assert!(Response::read(&message, ID, &own).is_none(), "{why}");
    }
}

#[test]
fn endless_and_overlong_names_are_invalid() {
    let question = question("bee.example", 12);
    let records_at = question.query(ID).len();
    let pointer = |to: usize| [0xc0 | u8::try_from(to >> 8).unwrap(), u8::try_from(to & 0xff).unwrap()];
    let check = |owner: &[u8], data: &[u8]| {
        let message = response(&question, 0, [&[record(owner, 12, data)], &[], &[]]);
        answer(&question, &message).is_some()
    };
    let data_at = records_at + 2 + 10;
    assert!(check(b"\xc0\x0c", &[&b"\x01x"[..], &pointer(records_at)].concat()));
    assert!(!check(&pointer(records_at), b"\0"), "a pointer to itself");
    assert!(!check(b"\xc0\x0c", &pointer(data_at)), "a pointer to itself in the data");
    assert!(!check(b"\xc0\x0c", &[&b"\x01x"[..], &pointer(data_at)].concat()), "a loop through a label");
    assert!(!check(b"\xc0\x0c", &pointer(data_at + 2)), "a pointer forward");
    assert!(!check(b"\xc0\x0c", &pointer(0x3fff)), "a pointer beyond the message");
    assert!(!check(b"\xc0\x0c", b"\x40x\0"), "an unknown kind of label");
    assert!(!check(b"\xc0\x0c", b"\x80x\0"), "another unknown kind of label");
    assert!(!check(b"\xc0\x0c", b"\x3fx\0"), "a label beyond the data");
    assert!(!check(b"\xc0\x0c", b"\x01x\0\0"), "bytes behind the name");
    let long = |label: u8| [vec![label], vec![b'x'; usize::from(label)]].concat();
    assert!(check(b"\xc0\x0c", &[long(63), long(63), long(63), long(61), vec![0]].concat()), "255 bytes");
    assert!(!check(b"\xc0\x0c", &[long(63), long(63), long(63), long(62), vec![0]].concat()), "256 bytes");
}

#[test]
fn chain_of_pointers_is_limited() {
    let question = question("bee.example", TXT);
    let data_at = question.query(ID).len() + 2 + 10;
    let check = |pointers: usize| {
        // Each pointer leads to the one before it, the first one to the question.
        let targets = std::iter::once(12).chain((0..pointers - 2).map(|number| data_at + 2 * number));
        let chain: Vec<u8> = targets.flat_map(|to| (0xc000 | u16::try_from(to).unwrap()).to_be_bytes()).collect();
        let last = (0xc000 | u16::try_from(data_at + chain.len() - 2).unwrap()).to_be_bytes();
        let records = [record(b"\xc0\x0c", TXT, &chain), record(&last, TXT, b"\x01x")];
        answer(&question, &response(&question, 0, [&records, &[], &[]])).is_some()
    };
    assert_eq!([check(3), check(POINTERS_MAX), check(POINTERS_MAX + 1)], [true, true, false]);
}

#[test]
fn records_beyond_the_limit_are_left_out() {
    let question = question("bee.example", TXT);
    let texts = vec![record(b"\xc0\x0c", TXT, &[&[255][..], &[b'x'; 255]].concat()); 200];
    let soa = record(b"\xc0\x0c", 6, &[&[0, 0][..], &[7; 20]].concat());
    let message = response(&question, 0, [&texts, &[soa], &[]]);
    let answer = Response::read(&message, ID, &question).unwrap().answer(&question, &|_target| true).unwrap();
    let texts = (16 * 1024 - question.query(ID).len()) / 268;
    assert_eq!(answer.len(), question.query(ID).len() + texts * 268);
    assert_eq!((answer[2] & 2, usize::from(answer[7]), answer[9]), (2, texts, 0), "truncated");
}

#[test]
fn missing_names_stay_missing() {
    let question = question("bee.example", TXT);
    let message = response(&question, 3, [&[], &[], &[]]);
    let read = Response::read(&message, ID, &question).unwrap();
    assert_eq!((read.code(), read.answer(&question, &|_target| true).unwrap()[3] & 15), (3, 3));
}

/// The targets that the policy is asked about, until it denies the one called `denied`.
fn targets(question: &Question, records: &[Vec<u8>], denied: &str) -> (Vec<String>, Result<(), RelayFault>) {
    let asked = std::sync::Mutex::new(Vec::new());
    let may_lead_to = |target: &Target| {
        let name = target.name.as_ref().map_or("-", DomainName::as_str);
        asked.lock().unwrap().push(format!("{name}{}", if target.shares_reverse_zone { " shared" } else { "" }));
        name != denied
    };
    let message = response(question, 0, [records, &[], &[]]);
    let answer = Response::read(&message, ID, question).unwrap().answer(question, &may_lead_to);
    (asked.into_inner().unwrap(), answer.map(drop))
}

#[test]
fn policy_is_asked_about_all_names_of_an_answer() {
    let question = question("bee.example", TXT);
    let alias = |from: &str, to: &str| record(&name(from), TYPE_CNAME, &name(to));
    let text = |owner: &str| record(&name(owner), TXT, b"\x03bee");
    let chain = [alias("BEE.example", "a.example"), alias("A.example", "b.example"), text("b.example")];
    let all = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(targets(&question, &chain, ""), (all(&["a.example", "b.example"]), Ok(())));
    assert_eq!(targets(&question, &chain, "a.example"), (all(&["a.example"]), Err(RelayFault::Denied)));
    assert_eq!(targets(&question, &chain, "b.example").1, Err(RelayFault::Denied));
    assert_eq!(targets(&question, &[text("bee.example")], ""), (vec![], Ok(())));
    // The records of another name without an alias, and an alias of a whole zone.
    assert_eq!(targets(&question, &[text("c.example")], "c.example").1, Err(RelayFault::Denied));
    let zone = record(&name("example"), TYPE_DNAME, &name("other.example"));
    assert_eq!(targets(&question, &[zone], ""), (all(&["example", "other.example"]), Ok(())));
    // Records that are left out do not matter, except those beyond the limit.
    assert_eq!(targets(&question, &[record(&name("d.example"), MX, b"\0\0\0")], ""), (vec![], Ok(())));
    let mut long = vec![record(&name("bee.example"), TXT, &[&[255][..], &[b'x'; 255]].concat()); 200];
    long.push(alias("bee.example", "e.example"));
    assert_eq!(targets(&question, &long, "e.example").1, Err(RelayFault::Denied));
    for odd in ["a b.example", "*.example", "1.2.3.4"] {
        assert_eq!(
            targets(&question, &[alias("bee.example", odd)], "-"),
            (all(&["-"]), Err(RelayFault::Denied)),
            "{odd}"
        );
    }
}

#[test]
fn answer_leads_to_a_limited_number_of_names() {
    let question = question("bee.example", TXT);
    let check = |names: usize| {
        let aliases = (0..names).map(|number| record(b"\xc0\x0c", TYPE_CNAME, &name(&format!("a{number}.example"))));
        targets(&question, &aliases.collect::<Vec<_>>(), "").1
    };
    assert_eq!([check(TARGETS_MAX), check(TARGETS_MAX + 1)], [Ok(()), Err(RelayFault::Invalid)]);
}

#[test]
fn parts_of_a_network_share_the_zone_of_their_addresses() {
    let check = |question: &Question, target: &str, expected: bool| {
        let (asked, _) = targets(question, &[record(b"\xc0\x0c", TYPE_CNAME, &name(target))], "");
        assert_eq!(asked.iter().map(|asked| asked.ends_with(" shared")).collect::<Vec<_>>(), [expected], "{target}");
    };
    let address = question("1.2.0.192.in-addr.arpa", 12);
    for shared in ["1.0/25.2.0.192.in-addr.arpa", "1.0-127.2.0.192.IN-ADDR.arpa", "2.0.192.in-addr.arpa"] {
        check(&address, shared, true);
    }
    for other in ["1.0-127.3.0.192.in-addr.arpa", "3.0.192.in-addr.arpa", "x2.0.192.in-addr.arpa", "bee.example"] {
        check(&address, other, false);
    }
    check(&question("bee.example", 12), "x.example", false);
    check(&question("2.0.192.in-addr.arpa", 12), "x.2.0.192.in-addr.arpa", false);
}

/// Returns the keys of a service's parameters, also those that are called mandatory. Shares no code with the relay.
fn keys(data: &[u8]) -> Vec<u16> {
    let mut rest = &data[2..];
    while rest[0] != 0 {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    rest = &rest[1..];
    let mut keys = Vec::new();
    while let [k0, k1, l0, l1, behind @ ..] = rest {
        let (value, behind) = behind.split_at(u16::from_be_bytes([*l0, *l1]).into());
        keys.push(u16::from_be_bytes([*k0, *k1]));
        if keys.last() == Some(&0) {
            keys.extend(value.chunks(2).map(|key| u16::from_be_bytes([key[0], key[1]])));
        }
        rest = behind;
    }
    assert_eq!(rest, b"", "bytes behind the parameters");
    keys
}

#[test]
fn damaged_responses_never_yield_addresses() {
    let question = question("bee.example", HTTPS);
    let hints = b"\0\x04\0\x04\xc0\0\x02\x01\0\x06\0\x10................";
    let service = [&b"\0\x01\x03www\xc0\x0c\0\0\0\x04\0\x01\0\x04\0\x01\0\x03\x02h2"[..], hints].concat();
    let soa = [&b"\x02ns\xc0\x0c\xc0\x10"[..], &[7; 20]].concat();
    let records = [record(b"\xc0\x0c", HTTPS, &service), record(b"\xc0\x0c", 5, b"\xc0\x10")];
    let whole = response(&question, 0, [&records, &[record(b"\xc0\x10", 6, &soa)], &[]]);
    let mut answers = 0;
    let mut check = |message: &[u8]| {
        let Some(answer) = Response::read(message, ID, &question)
            .and_then(|response| response.answer(&question, &|_target| true).ok())
        else {
            return;
        };
        let mut reader = Reader { message: &answer, at: question.query(ID).len(), end: answer.len() };
        while reader.at < reader.end {
            let record = reader.record().unwrap();
            assert!(matches!(record.kind, HTTPS | TYPE_CNAME | TYPE_DNAME | TYPE_SOA), "{}", record.kind);
            if record.kind == HTTPS {
                let keys = keys(&answer[record.data_at..record.data_end]);
                assert!(!keys.contains(&4) && !keys.contains(&6), "{keys:?}");
            }
        }
        answers += 1;
    };
    for end in 0..=whole.len() {
        check(&whole[..end]);
    }
    for at in 0..whole.len() {
        for byte in 0..=255 {
            let mut message = whole.clone();
            message[at] = byte;
            check(&message);
        }
    }
    assert!(answers > 256, "{answers}");
}
