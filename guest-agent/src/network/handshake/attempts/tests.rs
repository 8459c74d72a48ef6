// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the attempts, with numbers for dials and names for flows.

use std::rc::Rc;

use super::{
    super::packet::{
        Captured, parse,
        tests::{SYN_V4, bytes, syn},
    },
    *,
};

type Tested = Attempts<Rc<u64>, &'static str>;

/// A SYN from another port than the port of `SYN_V4`.
fn syn_from(port: u16) -> Syn {
    let mut packet = bytes(SYN_V4);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    let Some(Captured::Syn(syn)) = parse(&packet) else { panic!("not a SYN") };
    syn
}

/// Records a SYN. Returns the number of the dial that it starts, if any, and whether it is sent again.
fn record(attempts: &mut Tested, syn: Syn) -> (Option<u64>, bool) {
    let mut started = None;
    let again = attempts.on_syn(syn, Instant::now(), |number| Rc::new(*started.insert(number)));
    let again = again.is_some();
    (started, again)
}

#[test]
fn repeated_syn_starts_no_second_dial_and_is_sent_again_once_connected() {
    let mut attempts = Tested::default();
    let syn = syn(SYN_V4);
    assert_eq!(record(&mut attempts, syn.clone()), (Some(1), false));
    assert_eq!(record(&mut attempts, syn.clone()), (None, false));
    assert_eq!(attempts.on_connected(syn.ends, 1, "flow", Instant::now()), Some(&syn));
    assert_eq!(record(&mut attempts, syn.clone()), (None, true));
    assert_eq!(attempts.on_accepted(syn.ends), Some("flow"));
    assert_eq!((attempts.on_accepted(syn.ends), attempts.is_empty()), (None, true));
    assert_eq!(record(&mut attempts, syn), (Some(2), false));
}

#[test]
fn new_syn_from_the_same_port_takes_over_the_dial() {
    let mut attempts = Tested::default();
    let old = syn(SYN_V4);
    record(&mut attempts, old.clone());
    let mut packet = bytes(SYN_V4);
    // The sequence number differs.
    packet[27] ^= 1;
    let Some(Captured::Syn(new)) = parse(&packet) else { panic!("not a SYN") };
    assert_eq!(record(&mut attempts, new.clone()), (None, false));
    assert_ne!(old, new);
    assert_eq!(attempts.on_connected(old.ends, 1, "flow", Instant::now()), Some(&new));
}

#[test]
fn nothing_is_accepted_without_a_dialled_flow() {
    let mut attempts = Tested::default();
    let syn = syn(SYN_V4);
    assert_eq!(attempts.on_accepted(syn.ends), None);
    record(&mut attempts, syn.clone());
    assert_eq!(attempts.on_accepted(syn.ends), None);
    // The dial continues.
    assert_eq!(attempts.on_failed(syn.ends, 1), Some(syn));
    assert!(attempts.is_empty());
}

#[test]
fn answer_to_an_earlier_dial_is_ignored() {
    let mut attempts = Tested::default();
    let syn = syn(SYN_V4);
    record(&mut attempts, syn.clone());
    attempts.on_gone(syn.ends);
    assert_eq!(record(&mut attempts, syn.clone()), (Some(2), false));
    assert_eq!(attempts.on_connected(syn.ends, 1, "old", Instant::now()), None);
    assert_eq!(attempts.on_failed(syn.ends, 1), None);
    assert_eq!(attempts.on_connected(syn.ends, 2, "new", Instant::now()), Some(&syn));
    assert_eq!(attempts.on_failed(syn.ends, 2), None);
    assert_eq!(attempts.on_accepted(syn.ends), Some("new"));
}

#[test]
fn program_that_has_gone_ends_its_dial() {
    let mut attempts = Tested::default();
    let dial = Rc::new(0);
    let syn = syn(SYN_V4);
    attempts.on_syn(syn.clone(), Instant::now(), |_| Rc::clone(&dial));
    assert_eq!(Rc::strong_count(&dial), 2);
    attempts.on_gone(syn.ends);
    assert_eq!(Rc::strong_count(&dial), 1);
}

#[test]
fn number_of_attempts_is_limited() {
    let mut attempts = Tested::default();
    for port in 0..u16::try_from(ATTEMPTS_MAX).unwrap() {
        assert!(record(&mut attempts, syn_from(port + 1)).0.is_some());
    }
    let further = syn_from(u16::MAX);
    assert_eq!(record(&mut attempts, further.clone()), (None, false));
    attempts.on_gone(syn_from(1).ends);
    assert!(record(&mut attempts, further).0.is_some());
}

#[test]
fn old_attempts_are_probed_and_unaccepted_ones_removed() {
    let mut attempts = Tested::default();
    let (dialling, connected) = (syn_from(1), syn_from(2));
    let began = Instant::now();
    for syn in [&dialling, &connected] {
        attempts.on_syn(syn.clone(), began, Rc::new);
    }
    attempts.on_connected(connected.ends, 2, "flow", began);
    let mut due = |age| attempts.check(began + age).copied().collect::<Vec<_>>();
    assert_eq!(due(PROBE_AGE - Duration::from_nanos(1)), []);
    assert_eq!(due(PROBE_AGE).len(), 2);
    assert_eq!(due(ACCEPT_MAX), [dialling.ends]);
    assert_eq!(attempts.on_accepted(connected.ends), None);
}
