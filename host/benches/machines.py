# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""What waggle adds to a bare machine, in one run on one machine: writes docs/benchmarks.md.

The bare machine is waggle's own QEMU command line, read from a running one, with an init that does nothing but move
bytes (guest-agent/examples/raw_vsock.rs). Medians, and ratios of what was measured side by side, because the machine
that runs this is shared.
"""

import asyncio
import contextlib
import os
import pathlib
import platform
import socket
import statistics
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/e2e"))

from server import ROOT, Server  # noqa: E402

BOOTS = int(os.environ.get("WAGGLE_BENCH_BOOTS", "9"))
CALLS = 50
FILES = 9
MIB = 1 << 20
FILE_BYTES = 8 * MIB
# As raw_vsock.rs has it.
RAW_BYTES = 64 * MIB
RAW_PORT = 1026
# Under emulation a boot takes 3 s; one that has not come by then hangs.
BARE_BOOT_S = 60
MODULES = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
]


def qemu_of(server):
    (pid,) = server.machine_processes("qemu-system")
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


def bare(arguments, initramfs):
    """A machine's command line without its disks, with another initramfs, and a vsock device found by its name."""
    line = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word in ("-nodefaults", "-no-user-config", "-nographic", "-no-reboot"):
            line.append(word)
            continue
        value = next(words)
        if word == "-drive" or "virtio-blk-device" in value:
            continue
        if word == "-initrd":
            value = str(initramfs)
        if "id=vhost" in value:
            value = "socket,id=vhost,path=vhost"
        line += [word, value]
    return line


def cpio(entries):
    """An archive in the kernel's format: name, mode, content, device number."""
    packed = b""
    for number, (name, mode, content, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], 1):
        named = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(named), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + named
        packed += head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
    return packed


def bare_initramfs(folder):
    init = subprocess.run(
        ["guest-agent/build-static", "--example", "raw_vsock"], cwd=ROOT, check=True, text=True, capture_output=True
    )
    files = sorted((ROOT / "target/kernel/modules").rglob("*.ko"))
    by_name = {file.stem.replace("-", "_"): file for file in files}
    entries = [("dev", stat.S_IFDIR | 0o755, b"", (0, 0)), ("modules", stat.S_IFDIR | 0o755, b"", (0, 0))]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    entries.append(("init", stat.S_IFREG | 0o755, (ROOT / init.stdout.strip()).read_bytes(), (0, 0)))
    wanted = [name for name in MODULES if name in by_name]
    for number, name in enumerate(wanted):
        entries.append((f"modules/{number:02}", stat.S_IFREG | 0o644, by_name[name].read_bytes(), (0, 0)))
    path = pathlib.Path(folder) / "initramfs"
    path.write_bytes(cpio(entries))
    return path


def run_bare(arguments, initramfs):
    """Seconds from qemu's start to init, and MiB/s up and down over a bare vsock connection."""
    with tempfile.TemporaryDirectory(prefix="wb-") as folder, contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{folder}/link_{RAW_PORT}")
        listener.listen()
        listener.settimeout(BARE_BOOT_S)
        device = ["vhost-device-vsock", "--vm", "guest-cid=3,uds-path=link,socket=vhost"]
        stack.callback(end, subprocess.Popen(device, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while not os.path.exists(f"{folder}/vhost"):
            time.sleep(0.001)
        started = time.monotonic()
        qemu = subprocess.Popen(
            bare(arguments, initramfs), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        stack.callback(end, qemu)
        line = b""
        while b"raw-vsock: init" not in line:
            line = qemu.stdout.readline()
            assert line, "the bare machine ended before its init ran"
        init_s = time.monotonic() - started
        link, _ = listener.accept()
        stack.enter_context(link)
        link.settimeout(BARE_BOOT_S)
        return init_s, *move(link)


def move(link):
    buffer = bytearray(1 << 16)
    started = time.monotonic()
    left = RAW_BYTES
    while left:
        count = link.recv_into(buffer, min(left, len(buffer)))
        assert count, "the bare machine ended while it sent"
        left -= count
    up_s = time.monotonic() - started
    started = time.monotonic()
    link.sendall(bytes(RAW_BYTES))
    assert link.recv(1) == b"."
    down_s = time.monotonic() - started
    return RAW_BYTES / MIB / up_s, RAW_BYTES / MIB / down_s


def end(process):
    process.kill()
    process.wait()


async def timed(call):
    started = time.monotonic()
    result = await call
    return time.monotonic() - started, result


async def measure(server):
    figures = {name: [] for name in ("create", "init", "raw_up", "raw_down", "execute", "write", "read")}
    async with server.client() as tools:
        with tempfile.TemporaryDirectory(prefix="wb-") as folder:
            initramfs = bare_initramfs(folder)
            # The first one prepares the image.
            await tools.call(
                "destroy_environment",
                environment_id=(await tools.call("create_environment", runtime="shell"))["environment_id"],
            )
            for _ in range(BOOTS):
                seconds, made = await timed(tools.call("create_environment", runtime="shell"))
                figures["create"].append(seconds)
                arguments = qemu_of(server)
                await tools.call("destroy_environment", environment_id=made["environment_id"])
                init_s, up, down = run_bare(arguments, initramfs)
                for name, figure in (("init", init_s), ("raw_up", up), ("raw_down", down)):
                    figures[name].append(figure)
        async with tools.environment("shell") as made:
            one = made["environment_id"]
            for _ in range(CALLS):
                seconds, ran = await timed(tools.call("execute", environment_id=one, code="true"))
                figures["execute"].append(seconds * 1000 - ran["duration_ms"])
            content = "waggle-" * (FILE_BYTES // 7)
            for _ in range(FILES):
                seconds, _ = await timed(tools.call("write_file", environment_id=one, path="file", content=content))
                figures["write"].append(len(content) / MIB / seconds)
                seconds, read = await timed(tools.text("read_file", environment_id=one, path="file"))
                assert len(read) == len(content)
                figures["read"].append(len(content) / MIB / seconds)
    accelerator = "KVM" if "kvm" in arguments else "software emulation"
    return {name: statistics.median(all_of) for name, all_of in figures.items()}, accelerator


def page(figures, accelerator):
    raw_up, raw_down = figures["raw_up"], figures["raw_down"]
    return f"""# Benchmarks

Written by `./taskw bench`: medians of one run, on {os.cpu_count()} cores of {platform.machine()}, machines on {accelerator}. Ratios
compare what was measured side by side.

| what | figure | against | aim |
| --- | --- | --- | --- |
| create to ready | {figures["create"]:.2f} s | {figures["create"] / figures["init"]:.2f} × the {figures["init"]:.2f} s that a bare machine takes from QEMU's start to init | 1.3 |
| `execute` of `true`, round trip less what the agent measured from spawn to exit | {figures["execute"]:.1f} ms | | under 5 ms |
| `write_file` of 8 MiB | {figures["write"]:.0f} MiB/s | {100 * figures["write"] / raw_down:.0f} % of {raw_down:.0f} MiB/s over a bare vsock connection | 80 % |
| `read_file` of 8 MiB | {figures["read"]:.0f} MiB/s | {100 * figures["read"] / raw_up:.0f} % of {raw_up:.0f} MiB/s over a bare vsock connection | 80 % |

The times are those of the Python client, JSON and HTTP included. The bare machine has the same QEMU command line without
its disks; its init is `guest-agent/examples/raw_vsock.rs`.
"""


def main():
    server = Server().start()
    try:
        text = page(*asyncio.run(measure(server)))
        server.stop()
    finally:
        server.kill()
        server.remove()
    (ROOT / "docs/benchmarks.md").write_text(text)
    print(text)


main()
