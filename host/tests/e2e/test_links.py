# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The links between a machine and the host: bytes arrive unchanged, and programs in the guest cannot use the links."""

import asyncio
import base64
import hashlib
import json
import random

import pytest

from repositories import HOST
from test_hardening import guest
from test_network import LOOPBACK, PRELUDE, run

MIB = 1 << 20

# Number of bytes that go through each link in each direction.
BYTES = 16 * MIB

# Number of bytes of a file that fit into one result as base64.
PART_BYTES = 700_000

# The port of the host's vsock address that the call link leads to, and the number of connections to it.
CALL_PORT = 1024
CONNECTIONS = 40

# All defences inside the guest are off, so that root sees the agent's processes and can make device nodes.
NO_DEFENCES = "namespaces,capabilities,no-new-privileges,filter"

# Prints the ports of each process that has any, and the outcome of opening each port.
PORTS = """
import json
held = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        continue
    if ports := sorted({link for link in links if "/vport" in link}):
        held[int(pid)] = ports
opened = {}
for port in os.listdir("/sys/class/virtio-ports"):
    try:
        name = open(f"/sys/class/virtio-ports/{port}/name").read().strip()
    except FileNotFoundError:
        # The console's port has no name.
        continue
    major, minor = map(int, open(f"/sys/class/virtio-ports/{port}/dev").read().split(":"))
    os.mknod(f"/dev/{port}", 0o020666, os.makedev(major, minor))
    try:
        os.close(os.open(f"/dev/{port}", os.O_RDWR | os.O_NONBLOCK))
        opened[name] = "opened"
    except OSError as error:
        opened[name] = errno.errorcode[error.errno]
print(json.dumps([held, opened]))
"""


@pytest.mark.outside("libkrun's links use vsock")
async def test_each_process_holds_only_its_own_port_and_no_other_can_open_one(serve, peers):
    async with guest(serve, relax=NO_DEFENCES, EGRESS=f"{LOOPBACK}:{peers('repeat').port}") as one:
        held, opened = json.loads(await one.run("root", "import errno\n" + PORTS))
        assert opened == {"waggle.calls": "EBUSY", "waggle.egress": "EBUSY"}
        # PID 1, the agent that serves calls, and the network process.
        both = held.pop("1")
        assert len(both) == 2
        assert sorted(held.values()) == [[port] for port in both], held


@pytest.mark.outside("libkrun's links use vsock")
async def test_a_machine_without_a_network_has_no_port_for_one(serve):
    async with guest(serve, relax=NO_DEFENCES, EGRESS="none") as one:
        held, opened = json.loads(await one.run("root", "import errno\n" + PORTS))
        assert opened == {"waggle.calls": "EBUSY"}
        assert len(held.pop("1")) == 1 and len(held) == 1, held


@pytest.mark.smoke
async def test_bytes_of_the_call_link_arrive_unchanged(serve):
    content = random.Random("calls").randbytes(BYTES // 2)
    server = serve().start()
    async with server.client() as tools, tools.environment("python") as made:
        ident = made["environment_id"]
        for name in ["first", "second"]:
            encoded = base64.b64encode(content).decode()
            await tools.call("write_file", environment_id=ident, path=name, content=encoded, encoding="base64")
        code = """
import hashlib, json
print(json.dumps([hashlib.sha256(open(name, "rb").read()).hexdigest() for name in ("first", "second")]))
"""
        assert await run(tools, made, code) == [hashlib.sha256(content).hexdigest()] * 2
        parts = []
        for offset in range(0, len(content), PART_BYTES):
            text = await tools.text(
                "read_file", environment_id=ident, path="first", encoding="base64", offset=offset, limit=PART_BYTES
            )
            parts.append(base64.b64decode(text))
        assert hashlib.sha256(b"".join(parts)).digest() == hashlib.sha256(content).digest()


@pytest.mark.smoke
async def test_bytes_of_the_egress_link_arrive_unchanged(serve, peers):
    port = peers("repeat").port
    server = serve(EGRESS=f"{LOOPBACK}:{port}").start()
    async with server.client() as tools, tools.environment("python") as made:
        # The peer sends back what it has read, so the bytes go through the link in both directions.
        code = f"""
import hashlib, random
content = random.Random("egress").randbytes({BYTES})

def digest_of_answer(sizes):
    with connect({HOST!r}, {port}) as connection:
        sent = 0
        while sent < len(content):
            size = next(sizes)
            connection.sendall(content[sent:sent + size])
            sent += size
        connection.shutdown(socket.SHUT_WR)
        digest = hashlib.sha256()
        while part := connection.recv(1 << 20):
            digest.update(part)
        return digest.hexdigest()

sizes = random.Random("sizes")
print(json.dumps([
    hashlib.sha256(b"heard " + content).hexdigest(),
    digest_of_answer(iter([len(content)])),
    digest_of_answer(iter(lambda: sizes.randrange(1, 100_000), 0)),
]))
"""
        expected, in_one_write, in_many = await run(tools, made, code)
        assert (in_one_write, in_many) == (expected, expected)


async def test_a_guest_that_opens_many_connections_to_the_host_keeps_its_links(serve, request):
    if request.config.option.back_end == "qemu":
        pytest.skip("QEMU's links are ports, not vsock connections")
    code = f"""
import socket
held = []
for _ in range({CONNECTIONS}):
    one = socket.socket(socket.AF_VSOCK)
    one.settimeout(0.5)
    try:
        one.connect((socket.VMADDR_CID_HOST, {CALL_PORT}))
        held.append(one)
    except OSError:
        one.close()
print(len(held))
"""
    async with guest(serve, relax=NO_DEFENCES) as one:
        held = int(await one.run("root", code))
        # libkrun accepts a connection before the host does; msb_krun does not.
        assert held == CONNECTIONS if request.config.option.back_end == "krun" else held < 8, held
        assert await one.run("sandbox", "print('usable')") == "usable"


@pytest.mark.smoke
async def test_a_cancelled_call_leaves_the_link_usable(serve):
    server = serve().start()
    async with server.client() as tools, tools.environment("python") as made:
        flood = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await tools.call("execute", environment_id=made["environment_id"], code=flood, timeout_seconds=100)
        ran = await tools.call("execute", environment_id=made["environment_id"], code="print('usable')")
        assert ran["stdout"] == "usable\n"


@pytest.mark.timeout(280)
@pytest.mark.outside("the nested host has memory for fewer machines")
async def test_fifteen_machines_that_start_at_once_all_have_a_network(serve, peers):
    port = peers("repeat").port
    settings = {"MAX_ENVIRONMENTS": "15", "BOOT_TIMEOUT": "250s", "DEFAULT_MEMORY_MB": "192"}
    server = serve(EGRESS=f"{LOOPBACK}:{port}", **settings).start()
    async with server.client(timeout_s=270) as tools:

        async def ask():
            made = await tools.create("python")
            code = f'print(json.dumps(attempt(lambda: ask({HOST!r}, {port}, b"bee"))))'
            # The machines share two processors, so a connection may wait for a while.
            patient = PRELUDE.replace("< 20,", "< 200,")
            assert patient != PRELUDE
            code = patient + code
            ran = await tools.call("execute", environment_id=made["environment_id"], code=code, timeout_seconds=200)
            return ran["stdout"]

        answers = await asyncio.gather(*(ask() for _ in range(15)))
        assert answers == ['"heard bee"\n'] * 15
