# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Compares a guest's network through the egress link with QEMU's user networking, in two machines of the same kind.

`./taskw bench-network` builds everything that the benchmark needs and starts it. The benchmark prints and writes the page
docs/benchmarks/network.md. With `--quick` it measures less and only prints the page.

The second machine is also one of waggle's machines, but without waggle's network. A wrapper script around QEMU adds a
network card. The guest's defences are switched off, so that its root can load the driver of the card. Otherwise
the two machines are the same.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("WAGGLE_BINARY", str(ROOT / "target/release/waggle"))
sys.path.insert(0, str(ROOT / "host/tests/e2e"))

from hardware import processors  # noqa: E402
from peers import Peers  # noqa: E402
from repositories import HOST, serving  # noqa: E402
from server import Server, image, kvm_fault, run_script  # noqa: E402

QUICK = "--quick" in sys.argv[1:]
ROUNDS = 2 if QUICK else 7
BULK_MIB = 16 if QUICK else 64
SETUPS = 50 if QUICK else 300
FLOWS = 200
FLOW_KIB = 64
WHEELS = 8
WHEEL_KIB = 2048

SETTINGS = {"BACKEND": "qemu", "IMAGE_SHELL": image("python")}

# The address at which slirp offers the host's loopback.
SLIRP_HOST = "10.0.2.2"

# Prevents waggle from giving QEMU its own network namespace, because slirp must dial from the host's network.
WITHOUT_NAMESPACES = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
QEMU = """#!/bin/sh
exec {qemu} "$@" -netdev user,id=card -device virtio-net-device,netdev=card
"""

# Runs as the guest's root. Sets the address and the mask that slirp expects.
BRING_UP = """
import fcntl, os, socket, struct, time
while not os.path.exists("/sys/class/net/eth0"):
    time.sleep(0.1)
address = lambda text: struct.pack("H2x4s8x", socket.AF_INET, socket.inet_aton(text))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    fcntl.ioctl(one, 0x8916, struct.pack("16s16s", b"eth0", address("10.0.2.15")))
    fcntl.ioctl(one, 0x891c, struct.pack("16s16s", b"eth0", address("255.255.255.0")))
    fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"eth0", 0x41))
print("up")
"""

# The client that measures, in the guests and on the host. Definitions of HOST and the ports are put in front of it.
CLIENT = """
import json, selectors, socket, time

def connect(port):
    one = socket.create_connection((HOST, port), timeout=120)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one

def timed(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start

def download():
    with connect(SEND) as one:
        one.sendall(bytes([BULK_MIB]))
        buffer, got = bytearray(1 << 18), 0
        while read := one.recv_into(buffer):
            got += read
        assert got == BULK_MIB << 20, got

def upload():
    with connect(TAKE) as one:
        piece = bytes(1 << 18)
        for _ in range(BULK_MIB * 4):
            one.sendall(piece)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b"!"

def set_up():
    with connect(BANNER) as one:
        assert one.recv(1) == b"!"

def at_once():
    ones = [connect(REPEAT) for _ in range(FLOWS)]
    piece = bytes(FLOW_KIB << 10)
    for one in ones:
        one.sendall(piece)
        one.shutdown(socket.SHUT_WR)
    with selectors.DefaultSelector() as ready:
        for one in ones:
            ready.register(one, selectors.EVENT_READ)
        got = 0
        while ready.get_map():
            for key, _ in ready.select():
                read = key.fileobj.recv(1 << 18)
                got += len(read)
                if not read:
                    ready.unregister(key.fileobj)
    assert got == FLOWS * (len(piece) + 6), got
    for one in ones:
        one.close()
"""

WORKS = {
    "download": "print(json.dumps([timed(download)]))",
    "upload": "print(json.dumps([timed(upload)]))",
    "set_up": "print(json.dumps([timed(set_up) for _ in range(SETUPS)]))",
    "at_once": "print(json.dumps([timed(at_once)]))",
}

PIP = """
import json, subprocess, sys, time
start = time.monotonic()
command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-compile", "--disable-pip-version-check"]
command += ["--index-url", f"http://{HOST}:{INDEX}/simple/", "--trusted-host", HOST, "--target", f"/tmp/{start}", *PACKAGES]
subprocess.run(command, check=True)
print(json.dumps([time.monotonic() - start]))
"""


class Guest:
    """A machine in which the client runs. `host` is the address at which the machine reaches this host's loopback."""

    def __init__(self, tools, made, host, names):
        self.tools, self.id = tools, made["environment_id"]
        self.head = "\n".join(f"{name} = {value!r}" for name, value in ({"HOST": host} | names).items()) + "\n"

    async def times(self, code):
        ran = await self.tools.call("execute", environment_id=self.id, code=self.head + code, language="python", timeout_seconds=170)
        assert ran["exit_code"] == 0, ran
        return json.loads(ran["stdout"])


class Host:
    """Runs the client on this host, for comparison."""

    def __init__(self, names):
        self.head = "\n".join(f"{name} = {value!r}" for name, value in ({"HOST": "127.0.0.1"} | names).items()) + "\n"

    async def times(self, code):
        process = await asyncio.create_subprocess_exec(sys.executable, "-", stdin=-1, stdout=-1)
        out, _ = await process.communicate((self.head + code).encode())
        assert process.returncode == 0, out
        return json.loads(out)


def make_index(folder):
    """Writes a package index with wheels of incompressible bytes. Returns the names of the packages."""
    names = [f"bee{number}" for number in range(WHEELS)]
    for name in names:
        project = folder / "simple" / name
        project.mkdir(parents=True)
        info, wheel = f"{name}-1.dist-info", f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(project / wheel, "w") as archive:
            archive.writestr(f"{name}/honey", os.urandom(WHEEL_KIB << 10))
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: b\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"{name}/honey,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        (project / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    return names


@contextlib.contextmanager
def running(server):
    try:
        yield server.start()
    finally:
        server.stop()
        server.remove()


def with_card(folder):
    """Returns a server whose machines have QEMU's user networking instead of waggle's network."""
    (folder / "qemu-system-x86_64").write_text(QEMU.format(qemu=shutil.which("qemu-system-x86_64")))
    (folder / "qemu-system-x86_64").chmod(0o755)
    # The install command that an operator sets for a runtime runs as the guest's root.
    bring_up = "/usr/bin/python3 /home/sandbox/up.py"
    server = Server(**SETTINGS, EGRESS="none", RELAX="all", RUNTIME_SHELL_INSTALL_COMMAND=bring_up)
    search = f"PATH={folder}:{os.environ['PATH']}"
    server.through = ["unshare", "--user", "--map-root-user", "sh", "-c", WITHOUT_NAMESPACES, "sh", "env", search]
    return server


async def bring_up(tools, one):
    await tools.call("write_file", environment_id=one, path="up.py", content=BRING_UP)
    up = await tools.call("install_packages", environment_id=one, packages="none")
    assert up["stdout"] == "up\n", up


async def measure(link, card, names):
    """Returns the times by kind of work and place. Each round measures each work in all places, one after the other."""
    async with link.client() as ours, card.client() as theirs:
        async with ours.environment("shell") as one, theirs.environment("shell") as other:
            await bring_up(theirs, other["environment_id"])
            places = {"link": Guest(ours, one, HOST, names), "card": Guest(theirs, other, SLIRP_HOST, names), "host": Host(names)}
            found = {work: {place: [] for place in places} for work in (*WORKS, "pip")}
            for round_number in range(ROUNDS + 1):
                for work, code in WORKS.items():
                    for place, who in places.items():
                        times = await who.times(CLIENT + code)
                        # The first round only warms up.
                        if round_number:
                            found[work][place] += times
            for _ in range(min(ROUNDS, 3)):
                for place in ("link", "card"):
                    found["pip"][place] += await places[place].times(PIP)
            return found


def page(found):
    def row(name, work, figure, unit, faster):
        link, card, host = (figure(found[work][place]) if found[work][place] else None for place in ("link", "card", "host"))
        ratio = link / card if faster else card / link
        host = f"{host:.1f} {unit}" if host else ""
        return f"| {name} | {link:.1f} {unit} | {card:.1f} {unit} | {ratio:.1f} × | {host} |\n"

    def mib(times):
        return BULK_MIB / statistics.median(times)

    def ms(times):
        return 1000 * statistics.median(times)

    def p99(times):
        return 1000 * statistics.quantiles(times, n=100)[98]

    def s(times):
        return statistics.median(times)

    if kvm_fault():
        machines, processor = "two machines with an emulated processor each", "emulated"
    else:
        machines, processor = "two machines on KVM", "guest's"
    text = f"""# Network

`./taskw bench-network` measures this and writes this page. This run: {processors()};
{machines}, of the same kernel and image, measured in turn in the same run. "Speed-up" says
how many times faster the link is. Medians of {ROUNDS} rounds unless a row says otherwise.

| what | through the link | QEMU's user networking | speed-up of the link | on the host's loopback |
| --- | ---: | ---: | ---: | ---: |
"""
    text += row(f"download of {BULK_MIB} MiB", "download", mib, "MiB/s", True)
    text += row(f"upload of {BULK_MIB} MiB", "upload", mib, "MiB/s", True)
    text += row("connection until its first byte, p50", "set_up", ms, "ms", False)
    text += row("connection until its first byte, p99", "set_up", p99, "ms", False)
    text += row(f"{FLOWS} connections at once, {FLOW_KIB} KiB there and back on each", "at_once", s, "s", False)
    text += row(f"`pip install` of {WHEELS} packages of {WHEEL_KIB >> 10} MiB", "pip", s, "s", False)
    return text + f"""
## What the numbers mean

- The other end is a program on the host's loopback, so no physical network is involved. Client and servers are written in
  Python.
- The time of a connection ends when the first byte from the server arrives, because with the link a program's `connect`
  returns before the host has dialled. Each column measures {ROUNDS * SETUPS} connections, one after the other.
- QEMU's user networking (libslirp) carries frames of 1,500 bytes through a virtio network card. A tap device, which uses the
  host's kernel, would be faster, but requires privileges on the host.
- pip's time is mostly the work of the {processor} processor, whichever network carries the packages.
"""


def main():
    peers = Peers(run_script)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="wg-bench-"))
    try:
        packages = make_index(folder)
        kinds = {kind.upper(): peers(kind).port for kind in ("send", "take", "banner", "repeat")}
        with serving(folder) as index:
            names = kinds | {"INDEX": index, "PACKAGES": packages, "BULK_MIB": BULK_MIB, "SETUPS": SETUPS}
            names |= {"FLOWS": FLOWS, "FLOW_KIB": FLOW_KIB}
            rules = ",".join(f"127.0.0.1:{port}" for port in [*kinds.values(), index])
            with running(Server(**SETTINGS, EGRESS=rules)) as link, running(with_card(folder)) as card:
                began = time.monotonic()
                found = asyncio.run(measure(link, card, names))
                print(f"measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
    finally:
        peers.stop()
        shutil.rmtree(folder)
    text = page(found)
    print(text)
    if not QUICK:
        (ROOT / "docs/benchmarks/network.md").write_text(text)


main()
