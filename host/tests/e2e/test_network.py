# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Programs in guests reach what the rules allow, as with a network card, and nothing else."""

import asyncio
import json

import pytest

from repositories import HOST
from server import BINARY, ROOT
from test_hardening import NOT_PERMITTED, guest

# The address that rules contain if guests are to connect to HOST.
LOOPBACK = "127.0.0.1"

# Functions for programs in a guest. `attempt` returns the action's result or the name of its fault.
PRELUDE = """
import errno, json, socket, time

def connect(host, port):
    return socket.create_connection((host, port), timeout=60)

def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)

def ask(host, port, question):
    with connect(host, port) as connection:
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection).decode()

def send_udp(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(60)
        one.connect((host, port))
        one.send(b"anyone?")
        return one.recv(100).decode()

def attempt(action):
    start = time.monotonic()
    try:
        result = action()
    except OSError as error:
        # A reset between two system calls is reported as EPIPE or ENOTCONN.
        resets = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
        result = "reset" if error.errno in resets else type(error).__name__
    assert time.monotonic() - start < 20, "it took too long"
    return result
"""


async def run(tools, made, code, language="python"):
    """The JSON that the code prints."""
    ran = await tools.call(
        "execute", environment_id=made["environment_id"], code=PRELUDE + code, language=language, timeout_seconds=200
    )
    assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
    return json.loads(ran["stdout"])


async def test_connections_are_carried_with_their_ends_and_resets(serve, peers):
    repeats, resets = peers("repeat").port, peers("reset").port
    server = serve(EGRESS=f"{LOOPBACK}:{repeats},{LOOPBACK}:{resets}").start()
    async with server.client() as tools, tools.environment("python") as made:
        code = f"""
found = {{
    "half_closed": attempt(lambda: ask({HOST!r}, {repeats}, b"bee")),
    "much": attempt(lambda: len(ask({HOST!r}, {repeats}, bytes(8 << 20)))),
    "reset": attempt(lambda: ask({HOST!r}, {resets}, b"bee" * 100000)),
}}
print(json.dumps(found))
"""
        found = await run(tools, made, code)
        assert found == {"half_closed": "heard bee", "much": (8 << 20) + len("heard "), "reset": "reset"}


async def test_many_connections_are_carried_at_once_and_one_after_the_other(serve, peers):
    port = peers("repeat").port
    server = serve(EGRESS=f"{LOOPBACK}:{port}").start()
    async with server.client() as tools, tools.environment("python") as made:
        code = f"""
from concurrent.futures import ThreadPoolExecutor
# All connections are open before the first one sends anything.
open_ones = [connect({HOST!r}, {port}) for _ in range(200)]
for number, one in enumerate(open_ones):
    one.sendall(str(number).encode())
    one.shutdown(socket.SHUT_WR)
at_once = sum(read_all(one) == b"heard %d" % number for number, one in enumerate(open_ones))
for one in open_ones:
    one.close()
with ThreadPoolExecutor(8) as pool:
    short = sum(pool.map(lambda _: ask({HOST!r}, {port}, b"") == "heard ", range({server.connections})))
print(json.dumps([at_once, short]))
"""
        files = server.open_files()
        assert await run(tools, made, code) == [200, server.connections]
        # The connections have left nothing behind.
        assert server.open_files() <= files + 1


async def test_a_slow_server_delays_only_its_flow_and_uses_no_memory(serve, peers):
    slow, quick = peers("stall").port, peers("repeat").port
    server = serve(EGRESS=f"{LOOPBACK}:{slow},{LOOPBACK}:{quick}").start()
    async with server.client() as tools, tools.environment("python") as made:
        before = server.resident_kib()
        code = f"""
one = connect({HOST!r}, {slow})
one.settimeout(3)
sent = 0
try:
    while True:
        sent += one.send(bytes(1 << 20))
except TimeoutError:
    pass
print(json.dumps([sent, ask({HOST!r}, {quick}, b"bee")]))
"""
        sent, heard = await run(tools, made, code)
        # Only the buffers of both kernels, and a little in between, hold unread data.
        assert sent < 32 << 20, sent
        assert heard == "heard bee"
        assert server.resident_kib() - before < 16 << 10


async def test_idle_flows_stay_and_their_ends_are_noticed(serve, peers):
    peer = peers("watch")
    server = serve(EGRESS=f"{LOOPBACK}:{peer.port}").start()
    async with server.client() as tools, tools.environment("python") as made:
        code = f"""
import os
held = [connect({HOST!r}, {peer.port}) for _ in range(20)]
assert all(one.recv(1) == b"!" for one in held)
time.sleep(15)
for one in held[:10]:
    one.sendall(b"?")
print(json.dumps("idled"), flush=True)
# Ends without closing the connections, like a crash.
os.kill(os.getpid(), 9)
"""
        ran = await tools.call("execute", environment_id=made["environment_id"], code=PRELUDE + code, timeout_seconds=100)
        assert ran["stdout"] == '"idled"\n', ran
        for _ in range(100):
            if len(peer.heard()) == 20:
                break
            await asyncio.sleep(0.1)
        assert sorted(peer.heard()) == ["heard "] * 10 + ["heard ?"] * 10


async def test_traffic_that_is_not_carried_fails_at_once(serve):
    async with serve(EGRESS="public").start().client() as tools, tools.environment("python") as made:
        code = """
print(json.dumps({
    "udp": attempt(lambda: send_udp("192.0.2.1", 443)),
    "ping": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) and "socket"),
    "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) and "socket"),
    "own_port": attempt(lambda: ask("127.0.0.1", 9, b"")),
    "multicast": attempt(lambda: ask("224.0.0.1", 80, b"")),
}))
"""
        assert await run(tools, made, code) == {
            "udp": "ConnectionRefusedError",
            "ping": "PermissionError",
            "raw": "PermissionError",
            "own_port": "ConnectionRefusedError",
            "multicast": "OSError",
        }


async def test_the_default_policy_refuses_the_host_metadata_and_private_networks(serve, peers):
    [outside] = peers.own_addresses("192.0.2.1")
    port, everywhere = peers("greet").port, peers("greet", "0.0.0.0").port
    server = serve().start()
    async with server.client() as tools, tools.environment("python") as made:
        targets = {
            "metadata": ("169.254.169.254", 80),
            "hosts_loopback": (HOST, port),
            "private": ("192.168.0.1", 80),
            "shared": ("100.64.0.1", 80),
            "nowhere": ("240.0.0.1", 80),
        }
        if outside:
            targets |= {"mapped": (f"::ffff:{outside}", everywhere), "hosts_own": (outside, everywhere)}
        code = f"""
targets = json.loads({json.dumps(targets)!r})
print(json.dumps({{name: attempt(lambda: ask(*target, b"bee")) for name, target in targets.items()}}))
"""
        assert await run(tools, made, code) == dict.fromkeys(targets, "ConnectionRefusedError")


async def test_the_policy_none_means_no_network(serve):
    async with serve(EGRESS="none").start().client() as tools, tools.environment("python") as made:
        code = """
found = [attempt(lambda: ask("192.0.2.1", 80, b"")), attempt(lambda: socket.gethostbyname("example.org"))]
print(json.dumps(found + [attempt(lambda: ask("127.0.0.1", 9, b""))]))
"""
        assert await run(tools, made, code) == ["OSError", "gaierror", "ConnectionRefusedError"]


async def test_ipv6_works_where_the_host_has_it_and_fails_at_once_where_not(serve, peers):
    [outside] = peers.own_addresses("2001:db8::1")
    port = peers("repeat", outside).port if outside else 9
    rules = f"[{outside}]:{port}" if outside else "public"
    async with serve(EGRESS=rules).start().client() as tools, tools.environment("python") as made:
        code = f"""print(json.dumps(attempt(lambda: ask({outside or "2001:db8::1"!r}, {port}, b"bee"))))"""
        assert await run(tools, made, code) == ("heard bee" if outside else "OSError")


# Deletes the route that makes all addresses local, and prints the kernel's answer.
DELETE_ROUTE = """
import struct
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
    route = struct.pack("=8BIHHI", 2, 0, 0, 0, 254, 3, 254, 2, 0, 8, 4, 1)
    one.send(struct.pack("=IHHII", 16 + len(route), 25, 5, 1, 0) + route)
    print(os.strerror(-struct.unpack_from("i", one.recv(100), 16)[0]))
"""


# Sockets that could capture handshakes or answer for a server, and the mark with which the agent sends a SYN.
HANDSHAKE = """
attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 8))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 255))
attempt(lambda: socket.socket().setsockopt(1, socket.SO_MARK, 0x77616767))
"""


async def test_the_guests_root_cannot_change_the_routing(serve):
    async with guest(serve) as one:
        for user in ("sandbox", "root"):
            # BPF_PROG_GET_NEXT_ID, which would find the BPF program that redirects connections.
            assert await one.run(user, "attempt(lambda: syscall(321, 11, bytes(120), 120))") == NOT_PERMITTED
            assert await one.run(user, DELETE_ROUTE) == "Operation not permitted"
            assert await one.run(user, HANDSHAKE) == "\n".join([NOT_PERMITTED] * 4)
            bind = "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('10.0.77.1', 53)))"
            assert (await one.run(user, bind)).startswith("refused: ")


# Kills the only process in the control group `network`. Needs root, and a sandbox that sees the agent's processes.
KILL_NETWORK_PROCESS = """
import signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if open(f"/proc/{pid}/cgroup").read().strip().endswith("/network"):
            os.kill(int(pid), signal.SIGKILL)
            print("killed")
    except FileNotFoundError:
        pass
"""


async def test_a_killed_network_process_is_started_again(serve, peers):
    port = peers("repeat").port
    async with guest(serve, relax="namespaces", EGRESS=f"{LOOPBACK}:{port}") as one:
        ask = PRELUDE + f'print(attempt(lambda: ask({HOST!r}, {port}, b"bee")))'
        assert await one.run("sandbox", ask) == "heard bee"
        assert await one.run("root", KILL_NETWORK_PROCESS) == "killed"
        # The connection waits for the new process.
        assert await one.run("sandbox", ask) == "heard bee"


# The agent's instruction that loads the system call number of `bpf` (`mov $321, %edi`), and one with an unknown number.
BPF, NO_CALL = b"\xbf\x41\x01\x00\x00", b"\xbf\x0f\x27\x00\x00"


@pytest.mark.outside("runs a modified server")
async def test_a_guest_kernel_without_sk_lookup_is_reported(serve, tmp_path):
    agent = (ROOT / "target/agent/waggle-agent").read_bytes()
    assert BPF in agent
    program = BINARY.read_bytes()
    assert agent in program
    server = serve(EGRESS="public")
    server.binary = tmp_path / "waggle"
    server.binary.write_bytes(program.replace(agent, agent.replace(BPF, NO_CALL)))
    server.binary.chmod(0o755)
    async with server.start().client() as tools:
        with pytest.raises(Exception) as refused:
            await tools.call("create_environment", language="python")
        told = "failed to redirect connections: Function not implemented (os error 38); the guest's network requires Linux 5.9 or newer"
        assert told in str(refused.value)
        # Machines without a network still run.
        async with tools.environment("python", network="none") as made:
            ran = await tools.call("execute", environment_id=made["environment_id"], code="print('hum')")
            assert ran["stdout"] == "hum\n", ran
