// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Policies and the destinations that they allow.

use waggle_shared::address::canonical;

use super::*;

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

fn egress(text: &str) -> Egress {
    Egress::new(policy(text), None)
}

fn to(address: &str, port: u16) -> Destination {
    let address = canonical(address.parse().unwrap());
    Destination { address, port, name_rules: NameRules::default(), is_hosts_own: false }
}

/// Returns the destination with these names.
fn named(egress: &Egress, to: Destination, names: &[DomainName]) -> Destination {
    Destination { name_rules: names.iter().map(|name| egress.name_rules(name)).collect(), ..to }
}

fn check(policy: &str, address: &str, port: u16, name: Option<&str>, expected: bool) {
    let names: Vec<_> = name.into_iter().map(|name| name.parse().unwrap()).collect();
    let egress = egress(policy);
    let found = egress.allows(&named(&egress, to(address, port), &names));
    assert_eq!(found, expected, "{policy}: {address} port {port} as {name:?}");
}

#[test]
fn public_policy_allows_only_the_internet() {
    for address in ["1.1.1.1", "151.101.0.223", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "2606:4700::1"]
    {
        check("public", address, 443, None, true);
    }
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "10.0.77.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "192.88.99.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "168.63.129.16",
        "64:ff9b::168.63.129.16",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "2001:2::1",
        "3fff::1",
        "100::1",
        "5f00::1",
        "4000::1",
    ] {
        check("public", address, 443, None, false);
    }
}

#[test]
fn ipv6_forms_of_ipv4_addresses_do_not_bypass_the_policy() {
    for inside in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "100.64.0.1", "0.0.0.0"] {
        let octets = inside.parse::<Ipv4Addr>().unwrap().octets();
        let [high, low] = [[octets[0], octets[1]], [octets[2], octets[3]]].map(u16::from_be_bytes);
        for form in [
            format!("::ffff:{inside}"),
            format!("::{inside}"),
            format!("64:ff9b::{inside}"),
            format!("64:ff9b:1::{inside}"),
            format!("2002:{high:x}:{low:x}::1"),
            format!("2001:0:{high:x}:{low:x}::f7f7:f7f7"),
            format!("2001:0:808:808::{:x}:{:x}", !high, !low),
        ] {
            check("public", &form, 80, None, false);
        }
    }
    check("public", "::ffff:1.1.1.1", 80, None, true);
    check("public", "64:ff9b::1.1.1.1", 80, None, true);
    check("deny 1.1.1.0/24, public", "64:ff9b::1.1.1.1", 80, None, false);
    check("deny 1.1.1.0/24, public, 2002::/16", "2002:101:101::1", 80, None, false);
}

#[test]
fn host_addresses_are_not_public() {
    let own = Destination { is_hosts_own: true, ..to("1.1.1.1", 80) };
    assert!(!egress("public").allows(&own));
    assert!(egress("1.1.1.1").allows(&own));
}

#[test]
fn name_never_leads_to_the_host() {
    let names = ["a.corp.example".parse().unwrap()];
    for address in ["1.1.1.1", "10.0.0.1", "fd00::1", "127.0.0.1"] {
        let allows = |egress: Egress| {
            egress.allows(&named(&egress, Destination { is_hosts_own: true, ..to(address, 80) }, &names))
        };
        for policy in ["a.corp.example", "*.corp.example", "public"] {
            assert!(!allows(egress(policy)), "{policy}: {address}");
        }
        assert!(allows(egress(&format!("a.corp.example, {address}"))), "{address}");
    }
}

#[test]
fn name_never_leads_to_cloud_metadata() {
    for address in [
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
    ] {
        check("public", address, 80, None, false);
        for policy in ["public", "a.corp.example", "*.corp.example"] {
            check(policy, address, 80, Some("a.corp.example"), false);
        }
        check(address, address, 80, Some("a.corp.example"), true);
    }
    check("a.corp.example", "fd00:42::43", 80, Some("a.corp.example"), true);
    check("a.corp.example", "100.100.100.201", 80, Some("a.corp.example"), true);
}

fn allowed_name<'a>(egress: &Egress, port: u16, names: &'a [DomainName]) -> Option<&'a str> {
    let names = names.iter().map(|name| (name, egress.name_rules(name)));
    egress.allowed_name(&to("1.1.1.1", port), names).map(DomainName::as_str)
}

#[test]
fn proxy_gets_an_allowed_name_of_the_address() {
    let names = ["b.example", "a.example"].map(|name| name.parse().unwrap());
    for (policy, port, expected) in [
        ("a.example:443, b.example:80", 443, Some("a.example")),
        ("a.example:443, b.example:80", 80, Some("b.example")),
        ("a.example:443, 1.1.1.1", 8080, Some("b.example")),
        ("deny b.example, a.example", 443, Some("a.example")),
    ] {
        let found = allowed_name(&egress(policy), port, &names);
        assert_eq!(found, expected, "{policy}, port {port}");
    }
    let both = Egress::new(policy("a.example"), Some(policy("b.example")));
    assert!(both.allows(&named(&both, to("1.1.1.1", 443), &names)));
    assert_eq!(allowed_name(&both, 443, &names), None);
    // The last of many rules, with the last of many names.
    let rules: String = (0..RULES_MAX - 1).map(|number| format!("n{number}.example, ")).collect();
    let many: Vec<_> = (0..1000).map(|number| format!("m{number}.example").parse().unwrap()).chain(names).collect();
    let last = egress(&format!("{rules} a.example"));
    assert_eq!(allowed_name(&last, 443, &many), Some("a.example"));
    assert!(last.allows(&named(&last, to("1.1.1.1", 443), &many)));
}

#[test]
fn rule_for_either_loopback_address_opens_the_host_loopback() {
    let check = |server: &str, own: Option<&str>, expected: &[&str]| {
        let egress = Egress::new(policy(server), own.map(policy));
        let found: Vec<_> = egress.loopbacks(80, NameRules::default()).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{server}; {own:?}");
    };
    let (v4, v6, both): (&[&str], &[&str], &[&str]) = (&["127.0.0.1"], &["::1"], &["127.0.0.1", "::1"]);
    check("127.0.0.1:80", None, both);
    check("127.0.0.1:81", None, &[]);
    check("[::1]:80", None, v6);
    check("127.0.0.1, ::1", None, both);
    check("deny ::1, 127.0.0.1", None, v4);
    check("127.0.0.1, deny [::1]:80", None, v4);
    check("127.0.0.1, deny [::1]:81", None, both);
    check("deny 127.0.0.0/8, ::/0", None, &[]);
    check("deny 127.0.0.1:81, 127.0.0.1", None, both);
    check("::/0", None, v6);
    check("0.0.0.0/0", None, both);
    check("127.0.0.1", Some("127.0.0.1:80"), both);
    check("127.0.0.1", Some("[::1]:80"), v6);
    check("127.0.0.1", Some("deny ::1, 0.0.0.0/0"), v4);
    check("[::1]:80", Some("127.0.0.1"), v6);
    check("127.0.0.1", Some("public"), &[]);
    for policy in ["public", "none", "a.corp.example", "*.corp.example"] {
        let egress = egress(policy);
        let rules = egress.name_rules(&"a.corp.example".parse().unwrap());
        assert_eq!(egress.loopbacks(80, rules), [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 0], "{policy}");
    }
}

#[test]
fn first_matching_rule_decides() {
    check("deny 1.1.1.1, public", "1.1.1.1", 443, None, false);
    check("public, deny 1.1.1.1", "1.1.1.1", 443, None, true);
    check("10.0.0.0/8", "10.200.0.1", 1, None, true);
    check("10.0.0.0/8", "11.0.0.1", 1, None, false);
    check("allow 10.1.0.0/16:443", "10.1.2.3", 443, None, true);
    check("allow 10.1.0.0/16:443", "10.1.2.3", 80, None, false);
    check("10.1.0.0/16:8000-8100", "10.1.2.3", 8100, None, true);
    check("10.1.0.0/16:8000-8100", "10.1.2.3", 8101, None, false);
    check("deny public:25, public", "1.1.1.1", 25, None, false);
    check("deny public:25, public", "1.1.1.1", 26, None, true);
    check("0.0.0.0/0", "127.0.0.1", 1, None, true);
    check("0.0.0.0/0", "::1", 1, None, false);
    check("::/0", "::1", 1, None, true);
    check("[fd00::/8]:443", "fd12::1", 443, None, true);
    check("[fd00::/8]:443", "fd12::1", 80, None, false);
    check("fd00::1:443", "fd00::1:443", 80, None, true);
    check("::ffff:10.0.0.0/104", "10.9.9.9", 80, None, true);
    check("none", "1.1.1.1", 443, None, false);
}

#[test]
fn name_allows_only_its_own_addresses() {
    check("index.example:443", "151.101.0.223", 443, Some("index.example"), true);
    check("index.example:443", "151.101.0.223", 80, Some("index.example"), false);
    check("index.example:443", "151.101.0.223", 443, None, false);
    check("index.example", "151.101.0.223", 443, Some("index.example.example"), false);
    check("index.example", "151.101.0.223", 443, Some("notindex.example"), false);
    check("*.files.example", "151.101.0.223", 443, Some("files.files.example"), true);
    check("*.files.example", "151.101.0.223", 443, Some("a.b.files.example"), true);
    check("*.files.example", "151.101.0.223", 443, Some("files.example"), false);
    check("*.files.example", "151.101.0.223", 443, Some("evilfiles.example"), false);
    check("Index.example.", "151.101.0.223", 443, Some("index.EXAMPLE"), true);
    check("deny evil.example, public", "1.1.1.1", 443, Some("evil.example"), false);
    check("deny evil.example, public", "1.1.1.1", 443, Some("good.example"), true);
}

#[test]
fn name_leads_to_private_networks_only_with_an_exact_rule() {
    for (address, public, exact, under) in [
        ("1.1.1.1", true, true, true),
        ("10.0.0.1", false, true, false),
        ("100.64.0.1", false, true, false),
        ("fd00::1", false, true, false),
        ("127.0.0.1", false, false, false),
        ("169.254.169.254", false, false, false),
        ("0.0.0.0", false, false, false),
        ("::1", false, false, false),
        ("::ffff:127.0.0.1", false, false, false),
        ("fe80::1", false, false, false),
    ] {
        check("public", address, 80, Some("a.corp.example"), public);
        check("a.corp.example", address, 80, Some("a.corp.example"), exact);
        check("*.corp.example", address, 80, Some("a.corp.example"), under);
    }
    check("*.corp.example, 10.0.0.0/8", "10.0.0.1", 80, Some("a.corp.example"), true);
}

#[test]
fn environment_policy_only_narrows() {
    let both = |server: &str, own: &str| Egress::new(policy(server), Some(policy(own)));
    let name: DomainName = "intranet.example".parse().unwrap();
    let narrowed = both("public", "intranet.example");
    assert!(!narrowed.allows(&named(&narrowed, to("10.0.0.1", 80), std::slice::from_ref(&name))));
    assert!(!both("public", "0.0.0.0/0").allows(&to("127.0.0.1", 80)));
    assert!(!both("index.example", "public").allows(&to("1.1.1.1", 80)));
    assert!(both("public", "1.1.1.0/24:443").allows(&to("1.1.1.1", 443)));
    assert!(!both("public", "1.1.1.0/24:443").allows(&to("1.0.0.1", 443)));
    assert!(both("public", "none").is_none() && both("none", "public").is_none());
    assert!(!both("public", "index.example").looks_up(&name));
}

#[test]
fn name_is_looked_up_only_if_an_address_could_be_allowed() {
    let check = |policy: &str, name: &str, expected: bool| {
        assert_eq!(egress(policy).looks_up(&name.parse().unwrap()), expected, "{policy}: {name}");
    };
    check("public", "any.example", true);
    check("10.0.0.0/8", "any.example", true);
    check("index.example", "index.example", true);
    check("index.example:443", "index.example", true);
    check("index.example", "secret.evil.example", false);
    check("deny *.evil.example, public", "secret.evil.example", false);
    check("deny *.evil.example:25, public", "secret.evil.example", true);
    check("deny 10.0.0.0/8", "any.example", false);
    check("none", "any.example", false);
}

#[test]
fn rule_for_a_name_covers_records_of_its_services() {
    let check = |policy: &str, name: &str, expected: bool| {
        assert_eq!(egress(policy).looks_up_records(&name.parse().unwrap()), expected, "{policy}: {name}");
    };
    check("index.example:443", "index.example", true);
    check("index.example", "_https.index.example", true);
    check("index.example", "_sip._TCP.index.example", true);
    check("index.example", "_a._b._c.index.example", false);
    check("index.example", "www._tcp.index.example", false);
    check("index.example", "_tcp.www.index.example", false);
    check("index.example", "_index.example", false);
    check("index.example", "example", false);
    check("*.index.example", "_sip._tcp.index.example", true);
    check("*.index.example", "_a._b._c.a.index.example", true);
    check("*.index.example", "index.example", false);
    check("deny evil.example, public", "_sip._tcp.evil.example", false);
    check("deny evil.example, public", "_sip._tcp.good.example", true);
    check("_tcp.index.example", "_sip._tcp.index.example", false);
    check("_sip._tcp.index.example", "_sip._tcp.index.example", true);
    check("public", "_x", true);
    // Addresses of such names need a rule of their own.
    assert!(!egress("index.example").looks_up(&"_sip._tcp.index.example".parse().unwrap()));
}

#[test]
fn only_a_rule_for_the_name_denies_a_name() {
    let check = |policy: &str, name: &str, expected: bool| {
        assert_eq!(egress(policy).denies_name(&name.parse().unwrap()), expected, "{policy}: {name}");
    };
    let zone = "deny corp.example, deny *.corp.example, public";
    check(zone, "corp.example", true);
    check(zone, "secret.corp.example", true);
    check(zone, "_sip._tcp.corp.example", true);
    check(zone, "other.example", false);
    check("public, deny *.corp.example", "secret.corp.example", false);
    check("www.corp.example, deny *.corp.example, public", "www.corp.example", false);
    check("deny *.corp.example:25, public", "secret.corp.example", false);
    check("deny 10.0.0.0/8, index.example", "cdn.example", false);
    check("none", "any.example", false);
    check("deny *.in-addr.arpa, public", "1.1.1.1.in-addr.arpa", true);
    let both = Egress::new(policy("public"), Some(policy("deny corp.example, public")));
    assert!(both.denies_name(&"corp.example".parse().unwrap()));
}

#[test]
fn detects_addresses_without_an_allowed_port() {
    let check = |policy: &str, address: &str, expected: bool| {
        assert_eq!(egress(policy).allows_some_port(&to(address, 0)), expected, "{policy}: {address}");
    };
    check("public", "1.1.1.1", true);
    check("public", "127.0.0.1", false);
    check("10.0.0.1:443", "10.0.0.1", true);
    check("deny 10.0.0.1, 10.0.0.0/8", "10.0.0.1", false);
    check("deny 10.0.0.1:80, 10.0.0.0/8", "10.0.0.1", true);
}

#[test]
fn policy_survives_a_round_trip() {
    for text in [
        "none",
        "public",
        "index.example:443, *.files.example:443, deny public:25, 10.0.0.0/8, [fd00::/8]:1-9, 2001:db8::1",
        "2001:db8::1, deny 192.0.2.1",
    ] {
        assert_eq!(policy(text).to_string(), text);
    }
    assert_eq!(policy("allow public ,, ").to_string(), "public");
}

#[test]
fn rejects_invalid_policies() {
    for (text, expected) in [
        ("", "must not be empty; must be `none`"),
        (" , ", "must not be empty"),
        ("forbid public", "invalid rule \"forbid public\": must be [allow|deny] TARGET"),
        ("10.0.0", "invalid IP address or range"),
        ("10.0.0.0/33", "the prefix must have 0 to 32 bits"),
        ("fd00::/129", "the prefix must have 0 to 128 bits"),
        ("::ffff:0:0/95", "the prefix must have 96 to 128 bits"),
        ("10.0.0.1/8", "the bits after the first 8 must be zero"),
        ("fd00::1/8", "the bits after the first 8 must be zero"),
        ("index.example:0", "a port must be a number from 1 to 65535"),
        ("index.example:443-80", "a port must be a number"),
        ("index.example:", "a port must be a number"),
        ("*", "letters, digits, hyphens and underscores"),
        ("*.*.org", "letters, digits, hyphens and underscores"),
        ("exa mple.org", "must be [allow|deny] TARGET"),
        ("http://index.example", "a port must be a number"),
        ("a.0x7f", "must not start with a digit"),
        ("-x.example", "must not start with a hyphen"),
    ] {
        let fault = text.parse::<Policy>().unwrap_err().to_string();
        assert!(fault.contains(expected), "{text}: {fault}");
    }
    let many = vec!["a.example"; 257].join(",");
    assert_eq!(many.parse::<Policy>(), Err(PolicyFault::TooMany { rules: 257 }));
}
