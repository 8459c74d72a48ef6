# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Programs in guests reach what the rules allow, as if there were a network card, and nothing else."""

import asyncio
import contextlib
import json
import socket
import threading

import pytest

import repositories
from repositories import HOST
from server import image
from test_hardening import NOT_PERMITTED, guest

pytestmark = pytest.mark.outside("serves on this machine's loopback")

# What a rule calls that which guests know as HOST.
LOOPBACK = "127.0.0.1"

# What programs in a guest do. Each attempt comes to its result, or to what was wrong.
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
        # A reset that comes between two steps is heard of as one of the others.
        resets = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
        result = "reset" if error.errno in resets else type(error).__name__
    assert time.monotonic() - start < 20, "it took too long"
    return result
"""


@contextlib.contextmanager
def listening(serve, address="127.0.0.1"):
    """A TCP server in threads: `serve` gets each connection. Yields the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=512) as server:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=carry, args=(connection,), daemon=True).start()

        def carry(connection):
            with connection, contextlib.suppress(OSError):
                serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def repeat(connection):
    """Answers when the question has come to its end: what a half-closed connection is for."""
    question = b""
    while part := connection.recv(65536):
        question += part
    connection.sendall(b"heard " + question)


def reset(connection):
    """Reads a byte and breaks off."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def run(tools, made, code, language="python"):
    """What code prints, which is JSON."""
    ran = await tools.call(
        "execute", environment_id=made["environment_id"], code=PRELUDE + code, language=language, timeout_seconds=200
    )
    assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
    return json.loads(ran["stdout"])


async def test_connections_are_carried_with_their_ends_and_resets(serve):
    with listening(repeat) as repeats, listening(reset) as resets:
        server = serve(EGRESS=f"{LOOPBACK}:{repeats},{LOOPBACK}:{resets}").start()
        async with server.client() as tools, tools.environment("python") as made:
            code = f"""
from concurrent.futures import ThreadPoolExecutor
found = {{
    "half_closed": attempt(lambda: ask({HOST!r}, {repeats}, b"bee")),
    "much": attempt(lambda: len(ask({HOST!r}, {repeats}, bytes(8 << 20)))),
    "reset": attempt(lambda: ask({HOST!r}, {resets}, b"bee" * 100000)),
}}
# All are open before the first of them says anything.
open_ones = [connect({HOST!r}, {repeats}) for _ in range(200)]
for number, one in enumerate(open_ones):
    one.sendall(str(number).encode())
    one.shutdown(socket.SHUT_WR)
found["at_once"] = sum(read_all(one) == b"heard %d" % number for number, one in enumerate(open_ones))
for one in open_ones:
    one.close()
with ThreadPoolExecutor(8) as pool:
    found["short"] = sum(pool.map(lambda _: ask({HOST!r}, {repeats}, b"") == "heard ", range(1000)))
print(json.dumps(found))
"""
            found = await run(tools, made, code)
            assert found == {
                "half_closed": "heard bee",
                "much": (8 << 20) + len("heard "),
                "reset": "reset",
                "at_once": 200,
                "short": 1000,
            }


async def test_a_slow_server_holds_up_its_flow_and_no_memory(serve):
    stalled = threading.Event()
    with listening(lambda connection: stalled.wait(100)) as slow, listening(repeat) as quick:
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
            stalled.set()
            # The kernels' buffers, here and there, and a little in between.
            assert sent < 32 << 20, sent
            assert heard == "heard bee"
            assert server.resident_kib() - before < 16 << 10


async def test_idle_flows_stay_and_their_ends_are_noticed(serve):
    ends = []

    def watch(connection):
        connection.sendall(b"!")
        ends.append(connection.recv(1))

    with listening(watch) as port:
        server = serve(EGRESS=f"{LOOPBACK}:{port}").start()
        async with server.client() as tools, tools.environment("python") as made:
            code = f"""
import os
held = [connect({HOST!r}, {port}) for _ in range(20)]
assert all(one.recv(1) == b"!" for one in held)
time.sleep(15)
for one in held[:10]:
    one.sendall(b"?")
print(json.dumps("idled"), flush=True)
# As a crash would, without a word.
os.kill(os.getpid(), 9)
"""
            ran = await tools.call("execute", environment_id=made["environment_id"], code=PRELUDE + code, timeout_seconds=100)
            assert ran["stdout"] == '"idled"\n', ran
            for _ in range(100):
                if len(ends) == 20:
                    break
                await asyncio.sleep(0.1)
            assert sorted(ends) == [b""] * 10 + [b"?"] * 10


async def test_what_is_not_carried_fails_at_once(serve):
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


async def test_a_guest_gets_nowhere_that_no_rule_allows(serve):
    with listening(repeat) as port, listening(repeat, "0.0.0.0") as everywhere:
        outside = own_address()
        server = serve().start()
        async with server.client() as tools, tools.environment("python") as made:
            targets = {
                "metadata": ("169.254.169.254", 80),
                "hosts_loopback": (HOST, port),
                "private": ("192.168.0.1", 80),
                "shared": ("100.64.0.1", 80),
                "nowhere": ("240.0.0.1", 80),
                "mapped": (f"::ffff:{outside}", everywhere),
                "hosts_own": (outside, everywhere),
            }
            code = f"""
targets = json.loads({json.dumps(targets)!r})
print(json.dumps({{name: attempt(lambda: ask(*target, b"bee")) for name, target in targets.items()}}))
"""
            found = await run(tools, made, code)
            assert found == dict.fromkeys(targets, "reset")


async def test_without_a_network_there_is_none(serve):
    async with serve(EGRESS="none").start().client() as tools, tools.environment("python") as made:
        code = """
found = [attempt(lambda: ask("192.0.2.1", 80, b"")), attempt(lambda: socket.gethostbyname("example.org"))]
print(json.dumps(found + [attempt(lambda: ask("127.0.0.1", 9, b""))]))
"""
        assert await run(tools, made, code) == ["OSError", "gaierror", "ConnectionRefusedError"]


def own_address(target="192.0.2.1"):
    """This machine's address as others see it; none if there is no way to the target."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect((target, 9))
        except OSError:
            return None
        return one.getsockname()[0]


async def test_ipv6_works_where_the_host_has_it_and_fails_at_once_where_not(serve):
    outside = own_address("2001:db8::1")
    with listening(repeat, outside) if outside else contextlib.nullcontext(9) as port:
        rules = f"[{outside}]:{port}" if outside else "public"
        async with serve(EGRESS=rules).start().client() as tools, tools.environment("python") as made:
            code = f"""print(json.dumps(attempt(lambda: ask({outside or "2001:db8::1"!r}, {port}, b"bee"))))"""
            assert await run(tools, made, code) == ("heard bee" if outside else "OSError")


# As the guest's root: the route to everywhere, and the program that decides which socket gets a connection.
DELETE_ROUTE = """
import struct
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
    route = struct.pack("=8BIHHI", 2, 0, 0, 0, 254, 3, 254, 2, 0, 8, 4, 1)
    one.send(struct.pack("=IHHII", 16 + len(route), 25, 5, 1, 0) + route)
    print(os.strerror(-struct.unpack_from("i", one.recv(100), 16)[0]))
"""


async def test_not_even_the_guests_root_can_change_the_way_out(serve):
    async with guest(serve) as one:
        for user in ("sandbox", "root"):
            # BPF_PROG_GET_NEXT_ID, with which one would look for the program.
            assert await one.run(user, "attempt(lambda: syscall(321, 11, bytes(120), 120))") == NOT_PERMITTED
            assert await one.run(user, DELETE_ROUTE) == "Operation not permitted"
            bind = "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('10.0.77.1', 53)))"
            assert (await one.run(user, bind)).startswith("refused: ")


# As the guest's root that sees the agent: the process in the group of that name, which has no other.
KILL_THE_NETWORKS_PROCESS = """
import signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if open(f"/proc/{pid}/cgroup").read().strip().endswith("/egress"):
            os.kill(int(pid), signal.SIGKILL)
            print("killed")
    except FileNotFoundError:
        pass
"""


async def test_the_networks_process_is_started_again(serve):
    with listening(repeat) as port:
        async with guest(serve, relax="namespaces", EGRESS=f"{LOOPBACK}:{port}") as one:
            ask = PRELUDE + f'print(attempt(lambda: ask({HOST!r}, {port}, b"bee")))'
            assert await one.run("sandbox", ask) == "heard bee"
            assert await one.run("root", KILL_THE_NETWORKS_PROCESS) == "killed"
            # It waits for the next one.
            assert await one.run("sandbox", ask) == "heard bee"


@pytest.fixture
def installing(tmp_path, serve):
    """Makes a server whose images know no package repositories but one on this machine's loopback."""
    with contextlib.ExitStack() as stack:
        (tmp_path / "repository").mkdir()
        port = stack.enter_context(repositories.serve(tmp_path / "repository"))
        runtimes = ("python", "node", "shell")
        images = {f"IMAGE_{name.upper()}": repositories.image(name, tmp_path, port) for name in runtimes}

        def make(rules):
            return serve(IMAGE_CACHE_DIR=str(tmp_path / "cache"), EGRESS=rules.format(port=port), **images).start()

        yield make


PROGRAMS = {
    "python": "import waggle_bee, sys; print(waggle_bee.SAYS, sys.prefix)",
    "node": "console.log(require('waggle-bee').says)",
    "shell": "waggle-bee; stat -c %U /usr/bin/waggle-bee",
}
SAYS = {"python": "hum /home/sandbox/venv\n", "node": "hum\n", "shell": "hum\nwaggle-bee\n"}


async def test_pip_npm_and_apt_get_install_what_a_rule_allows(installing):
    async with installing(LOOPBACK + ":{port}").client() as tools:
        for runtime, code in PROGRAMS.items():
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                installed = await tools.call("install_packages", environment_id=one, packages="waggle-bee==1.2.3" if runtime == "python" else "waggle-bee")
                assert installed["exit_code"] == 0, installed
                ran = await tools.call("execute", environment_id=one, code=code)
                assert ran["stdout"] == SAYS[runtime], ran


async def test_pip_npm_and_apt_get_say_so_when_a_rule_is_what_is_missing(installing):
    async with installing("public").client() as tools:
        for runtime in PROGRAMS:
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                installed = await tools.call("install_packages", environment_id=one, packages="waggle-bee")
                assert installed["exit_code"] != 0, installed
                assert "network policy" in installed["hint"], installed


async def test_the_operators_certificates_are_trusted(serve, tmp_path):
    with repositories.serve_tls(tmp_path) as (port, bundle):
        settings = {"EGRESS": f"{LOOPBACK}:{port}", "CA_BUNDLE": str(bundle)}
        url = f"https://{HOST}:{port}/hello"
        fetches = {
            "python": {"python": f"import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"},
            "node": {"node": f"fetch('{url}').then(answer => answer.text()).then(text => console.log(text))"},
            "shell": {
                "shell": f"curl --silent --show-error {url}",
                "git": f"git ls-remote https://{HOST}:{port}/bee.git | cut -f 2",
            },
        }
        async with serve(**settings).start().client() as tools:
            for runtime, programs in fetches.items():
                async with tools.environment(runtime) as made:
                    for name, code in programs.items():
                        ran = await tools.call("execute", environment_id=made["environment_id"], code=code)
                        assert ran["stdout"].strip() == ("HEAD\nrefs/heads/hum" if name == "git" else "hum"), (name, ran)
        # The same is refused where the bundle is not given.
        async with serve(EGRESS=settings["EGRESS"], IMAGE_PYTHON=image("python")).start().client() as tools:
            async with tools.environment("python") as made:
                ran = await tools.call("execute", environment_id=made["environment_id"], code=fetches["python"]["python"])
                assert "CERTIFICATE_VERIFY_FAILED" in ran["stderr"], ran
