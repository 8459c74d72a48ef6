# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""`connect` in a guest succeeds only if the host has connected, and fails with the host's reason."""

import asyncio
import contextlib

import pytest

from repositories import HOST
from server import run_script
from test_hardening import guest
from test_names import HERE, neighbour
from test_network import LOOPBACK, PRELUDE, run

# Addresses that answer nothing, because the cable's other end drops all packets to them. Guests prefer the second one to
# any IPv4 address, since it is a unique local address like their own.
SILENT, SILENT_V6 = "198.18.99.9", "fd00:77:88::9"
# An address without a machine.
UNREACHABLE = "198.18.99.8"
# Any port of the addresses above.
PORT = 4321

# Functions that connect in other ways than `connect` does.
WAYS = """
import asyncio, select, subprocess, threading

def connect_later(host, port):
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    one.setblocking(False)
    assert one.connect_ex((host, port)) == errno.EINPROGRESS
    return one

def outcome(one, seconds):
    poll = select.poll()
    poll.register(one, select.POLLOUT)
    if not poll.poll(seconds * 1000):
        return "waits"
    number = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[number] if number else "connected"

def command(line):
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    return [ran.returncode, ran.stdout + ran.stderr]

def timed(action):
    start = time.monotonic()
    return [attempt(action), time.monotonic() - start]
"""


@contextlib.contextmanager
def silence():
    """Adds the addresses above to this machine's routes."""
    # No machine has this hardware address.
    nowhere = "lladdr 02:00:00:00:00:01 nud permanent dev waggle-here"
    with neighbour() as there:
        script = f"""
ip route add {UNREACHABLE} dev waggle-here
ip route add {SILENT} dev waggle-here
ip neighbour add {SILENT} {nowhere}
echo 0 >/proc/sys/net/ipv6/conf/waggle-here/accept_dad
ip -6 route add {SILENT_V6} dev waggle-here
ip -6 neighbour add {SILENT_V6} {nowhere}
"""
        run_script(script)
        yield there


def waiting_dials():
    """The number of the host's connections that wait for the silent address."""
    return int(run_script(f"ss -Htn state syn-sent dst {SILENT} | wc -l"))


async def test_connect_fails_with_the_reason_of_the_host(serve, peers):
    port, shut = peers("repeat").port, 1
    server = serve(EGRESS=f"{LOOPBACK}:{port}, {LOOPBACK}:{shut}").start()
    async with server.client() as tools, tools.environment("python") as made:
        code = f"""
def fast_open():
    # Sends data in the first packet, which 34 (TCP_FASTOPEN_NO_COOKIE) permits.
    with socket.socket() as one:
        one.setsockopt(socket.IPPROTO_TCP, 34, 1)
        one.settimeout(60)
        one.sendto(b"b" * 1000, socket.MSG_FASTOPEN, ({HOST!r}, {port}))
        one.sendall(b"e")
        one.shutdown(socket.SHUT_WR)
        return read_all(one).decode()

def with_options(host):
    with socket.socket() as one:
        one.settimeout(60)
        one.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\\1" * 8)
        one.connect((host, {port}))

def at_the_limit():
    # A machine has at most 224 connections at a time.
    held = [connect({HOST!r}, {port}) for _ in range(224)]
    refused, seconds = timed(lambda: connect({HOST!r}, {port}))
    waiting = connect_later({HOST!r}, {port})
    held.pop().close()
    return [refused, 4 < seconds < 15, outcome(waiting, 20)]

def own(host):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        with connect(host, server.getsockname()[1]):
            server.accept()[0].close()
        shut = server.getsockname()[1]
    return attempt(lambda: connect(host, shut))

print(json.dumps({{
    "closed": attempt(lambda: connect({HOST!r}, {shut})),
    "policy": attempt(lambda: connect({HOST!r}, {shut + 1})),
    "closed_later": outcome(connect_later({HOST!r}, {shut}), 20),
    "open_later": outcome(connect_later({HOST!r}, {port}), 20),
    "bash": command("exec 3<>/dev/tcp/{HOST}/{shut}"),
    "bash_open": command("exec 3<>/dev/tcp/{HOST}/{port}"),
    "curl": command("curl --silent --max-time 20 http://{HOST}:{shut}")[0],
    "fast_open": fast_open() == "heard " + "b" * 1000 + "e",
    "options": attempt(lambda: with_options({HOST!r})),
    "own": [own(host) for host in ("127.0.0.1", "10.0.77.2", "127.1.2.3")],
    "at_the_limit": at_the_limit(),
    "many": sorted(outcome(one, 20) for one in [connect_later({HOST!r}, port) for port in [{port}, {shut}] * 100]),
}}))
"""
        found = await run(tools, made, WAYS + code)
        refused = f"bash: connect: Connection refused\nbash: line 1: /dev/tcp/{HOST}/{shut}: Connection refused\n"
        assert found.pop("many") == ["ECONNREFUSED"] * 100 + ["connected"] * 100
        assert found == {
            "closed": "ConnectionRefusedError",
            "policy": "ConnectionRefusedError",
            "closed_later": "ECONNREFUSED",
            "open_later": "connected",
            "bash": [1, refused],
            "bash_open": [0, ""],
            "curl": 7,
            "fast_open": True,
            "options": None,
            "at_the_limit": ["ConnectionRefusedError", True, "connected"],
            "own": ["ConnectionRefusedError"] * 3,
        }


@pytest.mark.outside("the other machine is a network namespace here")
async def test_programs_reach_the_second_address_of_a_name(serve, peers):
    with silence():
        port, web = peers("repeat", HERE).port, peers("greet", HERE).port
        [v6] = peers.own_addresses("2001:db8::1")
        server = serve(EGRESS=f"{LOOPBACK}, {HERE}, {SILENT}, [{SILENT_V6}], {UNREACHABLE}")
        # Nothing listens at the first address of `refuses`, and nothing answers at the first address of `silent`.
        server.set_hosts(refuses=f"{LOOPBACK} {HERE}", silent=f"{SILENT_V6 if v6 else SILENT} {HERE}")
        async with server.start().client() as tools, tools.environment("python") as made:
            code = f"""
async def hear(name):
    reader, writer = await asyncio.open_connection(name, {port}, happy_eyeballs_delay=0.25)
    peer = writer.get_extra_info("peername")[0]
    writer.close()
    return peer

def addresses(name):
    return [entry[4][0] for entry in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)]

print(json.dumps({{
    "addresses": [addresses("refuses.test"), addresses("silent.test")],
    "unreachable": attempt(lambda: connect({UNREACHABLE!r}, {PORT}) and "connected"),
    "unreachable_later": outcome(connect_later({UNREACHABLE!r}, {PORT}), 20),
    "refuses": attempt(lambda: ask("refuses.test", {port}, b"bee")),
    "silent": timed(lambda: asyncio.run(hear("silent.test"))),
    "curl": timed(lambda: command("curl --silent --show-error --http0.9 --max-time 20 http://silent.test:{web}")),
}}))
"""
            found = await run(tools, made, WAYS + code)
            refuses, silent = found["addresses"]
            assert refuses == [HOST, HERE]
            # Without IPv6, the resolver of the host chooses the order.
            assert silent == [SILENT_V6, HERE] if v6 else sorted(silent) == [HERE, SILENT]
            assert found["refuses"] == "heard bee"
            assert (found["unreachable"], found["unreachable_later"]) == ("OSError", "EHOSTUNREACH")
            peer, seconds = found["silent"]
            assert (peer, seconds < 3) == (HERE, True), found
            output, seconds = found["curl"]
            assert (output, seconds < 3) == ([0, "hello"], True), found


@pytest.mark.outside("the other machine is a network namespace here")
async def test_a_program_that_stops_waiting_frees_the_dial(serve):
    with silence():
        server = serve(EGRESS=SILENT).start()
        async with server.client() as tools, tools.environment("python") as made:
            code = f"""
seconds = timed(lambda: socket.create_connection(({SILENT!r}, {PORT}), timeout=1))
waiting = connect_later({SILENT!r}, {PORT})
print(json.dumps([seconds[0], seconds[1] < 5, outcome(waiting, 5)]))
"""
            running = asyncio.create_task(run(tools, made, WAYS + code))
            counts = set()
            while not running.done():
                counts.add(waiting_dials())
                await asyncio.sleep(0.1)
            assert await running == ["TimeoutError", True, "waits"]
            # The SYN was repeated, but the host dialled once for each socket.
            assert max(counts) in (1, 2), counts
            for _ in range(50):
                if waiting_dials() == 0:
                    break
                await asyncio.sleep(0.1)
            assert waiting_dials() == 0


# Connects to the silent address without end, and closes most of the sockets.
FLOOD = f"""
deadline = time.monotonic() + 8
held = []
count = 0
while time.monotonic() < deadline:
    try:
        one = connect_later({SILENT!r}, {PORT})
    except OSError:
        held.clear()
        continue
    count += 1
    held.append(one)
    if len(held) > 3000:
        held.clear()
"""

# Prints the resident memory of the only process in the control group `network`, in KiB.
NETWORK_MEMORY = """
for pid in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(FileNotFoundError):
        if open(f"/proc/{pid}/cgroup").read().strip().endswith("/network"):
            print(open(f"/proc/{pid}/status").read().split("VmRSS:")[1].split()[0])
"""


@pytest.mark.outside("the other machine is a network namespace here")
async def test_a_flood_of_connects_is_bounded_and_the_agent_goes_on(serve, peers):
    port = peers("repeat").port
    with silence():
        async with guest(serve, relax="namespaces", EGRESS=f"{SILENT}, {LOOPBACK}:{port}") as one:
            before = int(await one.run("root", "import contextlib" + NETWORK_MEMORY))
            code = PRELUDE + WAYS + FLOOD + "print(count > 2000, count)"
            assert (await one.run("sandbox", code)).startswith("True"), "too few connects for a flood"
            after = int(await one.run("root", "import contextlib" + NETWORK_MEMORY))
            assert after - before < 8 << 10
            assert await one.run("sandbox", PRELUDE + f"print(attempt(lambda: ask({HOST!r}, {port}, b'bee')))") == "heard bee"
            for _ in range(50):
                if waiting_dials() == 0:
                    break
                await asyncio.sleep(0.1)
            assert waiting_dials() == 0


@pytest.mark.long
@pytest.mark.outside("the other machine is a network namespace here")
async def test_connect_times_out_if_the_server_never_answers(serve):
    with silence():
        async with serve(EGRESS=SILENT).start().client() as tools, tools.environment("python") as made:
            # A good machine takes 31 to 35 s; the rest is slack for a slow one.
            code = f"""
one = connect_later({SILENT!r}, {PORT})
start = time.monotonic()
print(json.dumps([outcome(one, 100), 25 < time.monotonic() - start < 45]))
"""
            assert await run(tools, made, WAYS + code) == ["ETIMEDOUT", True]
