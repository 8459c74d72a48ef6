# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Guests get all kinds of records from the host's name servers, as far as the policy allows, and addresses of one family."""

import json

from repositories import HOST
from server import image
from test_names import NAME_SERVER
from test_network import run

# A Node program that asks c-ares, Node's resolver, for records of each type that it supports.
NODE = """
const dns = require("dns").promises;
const tell = async (question) => { try { return await question(); } catch (fault) { return fault.code; } };
(async () => {
  const found = {
    srv: await tell(() => dns.resolveSrv("_sip._tcp.bee.test")),
    before: await tell(() => dns.reverse("198.41.0.4")),
    a: await tell(() => dns.resolve4("place.test")),
    reverse: await tell(() => dns.reverse("198.41.0.4")),
    mx: await tell(() => dns.resolveMx("bee.test")),
    ns: await tell(() => dns.resolveNs("bee.test")),
    soa: await tell(() => dns.resolveSoa("bee.test")),
    caa: await tell(() => dns.resolveCaa("bee.test")),
    naptr: await tell(() => dns.resolveNaptr("bee.test")),
    cname: await tell(() => dns.resolveCname("bee.test")),
    denied: await tell(() => dns.resolveTxt("secret.evil.test")),
  };
  // Twenty texts of 250 bytes fit only in answers over TCP, from the name server and to this program.
  const texts = await tell(() => dns.resolveTxt("bee.test"));
  found.texts = texts.length === 20 && texts.every(([text], at) => text === String(at).padStart(2, "0") + "x".repeat(248));
  // Newer versions of Node also tell the type of each record.
  console.log(JSON.stringify(found, (key, value) => (key === "type" ? undefined : value)));
})();
"""


async def refused(tools, made):
    listed = await tools.call("list_environments")
    (one,) = [one for one in listed["environments"] if one["environment_id"] == made["environment_id"]]
    return one["egress_refused"]


async def test_guests_get_all_kinds_of_records_of_allowed_names(serve, peers):
    names = peers("names", NAME_SERVER)
    server = serve(EGRESS="public, *.test")
    server.set_name_server(NAME_SERVER)
    async with server.start().client() as tools, tools.environment("node", network="bee.test, place.test") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code=NODE, timeout_seconds=100)
        assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
        assert json.loads(ran["stdout"]) == {
            "srv": [{"name": "place.test", "port": 5060, "priority": 1, "weight": 2}],
            # The address has a name for the guest only after the guest has received it for a name.
            "before": "ENOTFOUND",
            "a": ["198.41.0.4"],
            "reverse": ["place.test"],
            "mx": [{"exchange": "mail.bee.test", "priority": 10}],
            "ns": ["ns.bee.test"],
            "soa": {
                "nsname": "ns.bee.test",
                "hostmaster": "me.test",
                "serial": 7,
                "refresh": 8,
                "retry": 9,
                "expire": 10,
                "minttl": 11,
            },
            "caa": [{"critical": 0, "issue": "ca.test"}],
            "naptr": [
                {
                    "flags": "S",
                    "service": "SIP+D2T",
                    "regexp": "",
                    "replacement": "_sip._tcp.bee.test",
                    "order": 1,
                    "preference": 2,
                }
            ],
            "cname": "ENODATA",
            "denied": "ENOTFOUND",
            "texts": True,
        }
        assert await refused(tools, made) == 2
    assert "_sip._tcp.bee.test 33" in names.heard()
    assert not [line for line in names.heard() if "evil" in line]


# Sends a question over UDP, and returns the whole response.
ASK_RAW = """
import ctypes, struct

def ask_raw(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(60)
        one.connect(("10.0.77.1", 53))
        one.send(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1))
        return one.recv(65536)

def summary(message):
    # The code, whether the response is truncated, and the numbers of answers, authorities and additional records.
    return [message[3] & 15, message[2] >> 1 & 1, *struct.unpack("!3H", message[6:12])]
"""


async def test_a_name_keeps_its_family_and_an_answer_loses_what_is_not_allowed(serve, peers):
    peers("names", NAME_SERVER)
    port = peers("repeat", "::1").port
    server = serve(EGRESS=f"deny *.corp.test, 198.41.0.0/24, 127.0.0.1:{port}", IMAGE_SHELL=image("foreign"))
    server.set_name_server(NAME_SERVER)
    async with server.start().client() as tools, tools.environment("python") as made:
        code = f"""
print(json.dumps({{
    "both": sorted({{entry[4][0] for entry in socket.getaddrinfo("both.test", 443)}}),
    "denied_family": summary(ask_raw("both.test", 28)),
    "six": attempt(lambda: ask("six.test", {port}, b"bee")),
    "six_by_address": attempt(lambda: ask({HOST!r}, {port}, b"bee")),
    "web": ask_raw("bee.test", 65)[26 + 6:].hex(),
    "web_counts": summary(ask_raw("bee.test", 65)),
    "texts": summary(message := ask_raw("bee.test", 16)) + [len(message)],
    "glibc": ctypes.CDLL("libresolv.so.2").res_query(b"bee.test", 1, 16, ctypes.create_string_buffer(65536), 65536),
    "any": summary(ask_raw("bee.test", 255)),
    "transfer": summary(ask_raw("bee.test", 252)),
    "name_of_allowed": summary(ask_raw("4.0.41.198.in-addr.arpa", 12)),
    "name_of_denied": summary(ask_raw("1.0.0.10.in-addr.arpa", 12)),
    "unknown": summary(ask_raw("_x._tcp.bee.test", 33)),
    "alias": summary(ask_raw("other.test", 16)),
    "alias_of_denied": summary(ask_raw("denied.test", 16)),
    "alias_of_name_of_denied": summary(ask_raw("turned.test", 12)),
    "name_in_part_of_network": summary(ask_raw("5.0.41.198.in-addr.arpa", 12)),
    "address_of_reverse_name": summary(ask_raw("2.0.0.10.in-addr.arpa", 1)),
    "no_host_name": summary(ask_raw("*.bee.test", 16)),
}}))
"""
        assert await run(tools, made, ASK_RAW + code) == {
            "both": ["198.41.0.4"],
            "denied_family": [0, 0, 0, 0, 0],
            # The host has a server at ::1 only, and a name that leads there.
            "six": "heard bee",
            "six_by_address": "heard bee",
            # A TTL of a minute, and the data with the key alpn, also as the only mandatory one.
            "web": "0000003c0010" + "000100" + "000000020001" + "00010003026832",
            "web_counts": [0, 0, 1, 0, 0],
            # One text fits beside the question.
            "texts": [0, 1, 1, 0, 0, 26 + 12 + 251],
            # All twenty, as glibc asks again over TCP.
            "glibc": 26 + 20 * (12 + 251),
            "any": [4, 0, 0, 0, 0],
            "transfer": [4, 0, 0, 0, 0],
            "name_of_allowed": [0, 0, 1, 0, 0],
            "name_of_denied": [3, 0, 0, 0, 0],
            "unknown": [3, 0, 0, 0, 0],
            # The alias itself and the record at its end, if the policy allows both names.
            "alias": [0, 0, 2, 0, 0],
            "alias_of_denied": [3, 0, 0, 0, 0],
            "alias_of_name_of_denied": [3, 0, 0, 0, 0],
            "name_in_part_of_network": [0, 0, 2, 0, 0],
            "address_of_reverse_name": [5, 0, 0, 0, 0],
            "no_host_name": [5, 0, 0, 0, 0],
        }
        assert await refused(tools, made) == 4
        async with tools.environment("shell") as busybox:
            code = "busybox nslookup both.test && busybox nslookup -type=srv _sip._tcp.bee.test"
            ran = await tools.call("execute", environment_id=busybox["environment_id"], code=code)
            assert (ran["exit_code"], "198.41.0.4" in ran["stdout"]) == (0, True), ran
            assert "place.test" in ran["stdout"] and "5060" in ran["stdout"], ran
