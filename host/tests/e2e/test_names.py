# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The host resolves names for guests as for its own programs, and names do not bypass the policy."""

import contextlib
import fcntl
import os
import pathlib
import shlex
import tempfile

import pytest

from peers import Peers
from repositories import HOST
from server import run_script
from test_network import LOOPBACK, run

# The addresses at the two ends of a cable: this machine's, and that of another machine on its network.
HERE, THERE = "10.77.88.1", "10.77.88.2"

# A loopback address of the server's machine, for this test process only. Its port 53 needs root.
NAME_SERVER = f"127.77.{os.getpid() // 256 % 256}.{os.getpid() % 256}"

# Functions that send a DNS query to any server, over UDP or TCP, and return the response code and the addresses.
ASK = """
import struct

def question(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)

def read_answer(name, message):
    records = message[len(question(name)):]
    return [message[3] & 15] + [socket.inet_ntoa(records[at + 12:at + 16]) for at in range(0, len(records), 16)]

def ask_udp(name, server, port=53):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(60)
        # Connected, so only a response from that server counts.
        one.connect((server, port))
        one.send(question(name))
        return read_answer(name, one.recv(600))

def ask_tcp(name, server, port=53):
    with connect(server, port) as one:
        one.sendall(struct.pack("!H", len(question(name))) + question(name))
        [size] = struct.unpack("!H", one.recv(2, socket.MSG_WAITALL))
        return read_answer(name, one.recv(size, socket.MSG_WAITALL))
"""


async def test_the_host_resolves_names_for_any_dns_server(serve, peers):
    port = peers("repeat").port
    server = serve(EGRESS=f"{LOOPBACK}:{port}")
    server.set_hosts(hive=LOOPBACK)
    async with server.start().client() as tools, tools.environment("python") as made:
        code = f"""
print(json.dumps({{
    "resolver": attempt(lambda: socket.gethostbyname("hive.test")),
    "connection": attempt(lambda: ask("hive.test", {port}, b"bee")),
    "udp": attempt(lambda: ask_udp("hive.test", {HOST!r})),
    "udp_elsewhere": attempt(lambda: ask_udp("HIVE.test", "192.0.2.53")),
    "tcp": attempt(lambda: ask_tcp("hive.test", {HOST!r})),
    "tcp_elsewhere": attempt(lambda: ask_tcp("hive.test", "192.0.2.53")),
    "unknown": attempt(lambda: ask_udp("nobody.invalid", {HOST!r}))[0] in (2, 3),
    "other_port": attempt(lambda: ask_udp("hive.test", "192.0.2.53", 5353)),
    "other_port_tcp": attempt(lambda: ask_tcp("hive.test", "192.0.2.53", 5353)),
    "over_tls": attempt(lambda: ask_tcp("hive.test", "192.0.2.53", 853)),
}}))
"""
        assert await run(tools, made, ASK + code) == {
            "resolver": HOST,
            "connection": "heard bee",
            "udp": [0, HOST],
            "udp_elsewhere": [0, HOST],
            "tcp": [0, HOST],
            "tcp_elsewhere": [0, HOST],
            "unknown": True,
            "other_port": "ConnectionRefusedError",
            "other_port_tcp": "ConnectionRefusedError",
            "over_tls": "ConnectionRefusedError",
        }


async def test_a_name_that_changes_to_a_denied_address_leads_nowhere(serve, peers):
    port = peers("repeat").port
    server = serve(EGRESS="*.test, public")
    # The attacker's targets, to which the name changes after an allowed address.
    places = [LOOPBACK, "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"]
    code = f"""
found = [attempt(lambda: [entry[4][0] for entry in socket.getaddrinfo("bee.test", 80, type=socket.SOCK_STREAM)])]
found += [attempt(lambda: ask(place, {port}, b"bee")) for place in ({HOST!r}, "169.254.169.254", "10.0.0.1")]
print(json.dumps(found))
"""
    refused = ["ConnectionRefusedError"] * 3
    server.set_hosts(bee="198.41.0.4")
    async with server.start().client() as tools, tools.environment("python") as made:
        assert await run(tools, made, code) == [["198.41.0.4"], *refused]
        for place in places:
            server.set_hosts(bee=place)
            assert await run(tools, made, code) == ["gaierror", *refused], place


async def test_an_alias_is_allowed_only_if_its_target_is(serve, peers):
    peers("names", NAME_SERVER)
    server = serve(EGRESS="public, *.test")
    server.set_name_server(NAME_SERVER)
    async with server.start().client() as tools, tools.environment("python") as made:
        code = f"""
names = ("place", "other", "metadata", "leads", "dangles", "nobody")
print(json.dumps([attempt(lambda: ask_udp(f"{{name}}.test", {HOST!r})) for name in names]))
"""
        place, nowhere = [0, "198.41.0.4"], [3]
        assert await run(tools, made, ASK + code) == [place, place, nowhere, nowhere, nowhere, nowhere]


@contextlib.contextmanager
def neighbour():
    """Makes servers on another machine of this network: a network namespace at the other end of a cable.

    Only one exists at a time, because its names and addresses are fixed; other test processes wait."""
    with open(pathlib.Path(tempfile.gettempdir()) / "waggle-neighbour.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with made_neighbour() as made:
            yield made


@contextlib.contextmanager
def made_neighbour():
    space, here, there = "waggle-there", "waggle-here", "eth0"
    inside = f"ip netns exec {space}"
    steps = [
        # A killed test leaves its namespace behind.
        f"(ip link del {here}; ip netns del {space}) 2>/dev/null || true",
        f"ip netns add {space}",
        f"ip link add {here} type veth peer name {there} netns {space}",
        f"ip address add {HERE}/30 dev {here}",
        f"ip link set {here} up",
        f"{inside} ip address add {THERE}/30 dev {there}",
        f"{inside} ip link set {there} up",
        "echo done",
    ]
    made = Peers(lambda script: run_script(f"{inside} sh -c {shlex.quote(script)}"))
    done = run_script(" && ".join(steps))
    try:
        assert done == "done\n", "failed to make a network namespace: run ./setup test, and run the tests as root"
        yield made
    finally:
        made.stop()
        # The kernel would remove the cable with the namespace, but later.
        run_script(f"ip link del {here}; ip netns del {space}")


@pytest.mark.outside("the other machine is a network namespace here")
async def test_a_name_opens_addresses_only_to_the_environment_that_asked(serve):
    with neighbour() as there:
        port, other = there("repeat", THERE).port, there("repeat", THERE).port
        server = serve(EGRESS=f"bee.test:{port}, here.test")
        server.set_hosts(bee=THERE, wasp=THERE, here=HERE)
        async with server.start().client() as tools, tools.environment("python") as made:
            code = f"""
print(json.dumps({{
    "address_first": attempt(lambda: ask({THERE!r}, {port}, b"bee")),
    "other_name": attempt(lambda: ask_udp("wasp.test", {HOST!r})),
    "after_other_name": attempt(lambda: ask({THERE!r}, {port}, b"bee")),
    "name": attempt(lambda: ask("bee.test", {port}, b"bee")),
    "other_port": attempt(lambda: ask("bee.test", {other}, b"bee")),
    "name_of_the_host": attempt(lambda: ask_udp("here.test", {HOST!r})),
}}))
"""
            assert await run(tools, made, ASK + code) == {
                "address_first": "ConnectionRefusedError",
                "other_name": [3],
                "after_other_name": "ConnectionRefusedError",
                "name": "heard bee",
                "other_port": "ConnectionRefusedError",
                "name_of_the_host": [3],
            }
            async with tools.environment("python") as second:
                # An answer to one environment does not count for another.
                code = f"print(json.dumps(attempt(lambda: ask({THERE!r}, {port}, b'bee'))))"
                assert await run(tools, second, code) == "ConnectionRefusedError"
