# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Measures the back ends against each other: libkrun and QEMU with KVM in a nested host, QEMU with emulation here.

`./taskw bench-back-ends` makes what this needs and starts it; words after it choose places, of krun, qemu-kvm and qemu-tcg.
With --kvm the first two run here, on this machine's KVM, and the third does not.
Prints the page docs/benchmarks/back-ends.md, and writes it if all places were measured.
"""

import asyncio
import os
import pathlib
import shutil
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("WAGGLE_BINARY", str(ROOT / "target/release/waggle"))
sys.path.insert(0, str(ROOT / "host/tests/e2e"))

from hardware import processors  # noqa: E402
from krun_server import KrunServer  # noqa: E402
from nested import NestedHost  # noqa: E402
from nested_server import NestedServer  # noqa: E402
from server import BINARY, Server, kvm_fault  # noqa: E402

STARTS = int(os.environ.get("STARTS", "5"))
CALLS = 40
MANY = 10
BULK_MIB = 32
# Small enough that ten fit into the nested host, large enough for libkrun's kernel.
MEMORY_MIB = 192
KVM_HERE = "--kvm" in sys.argv[1:]
PLACES = ["krun", "qemu-kvm"] if KVM_HERE else ["krun", "qemu-kvm", "qemu-tcg"]
COMMAND = "./taskw bench-back-ends" + (" -- --kvm" if KVM_HERE else "")
HEAD = f"""# Back ends

`{COMMAND}` measures this and writes this page. Medians of {STARTS} starts and {CALLS} calls; machines of
{MEMORY_MIB} MiB with one processor.

"""
ON_KVM = f"""Both ran on the KVM of one machine. This run: {processors()}.

"""
NESTED = """`krun` and `qemu-kvm` ran in a nested host whose own processor, KVM included, is emulated: they compare with each other, and
say nothing of real hardware. `qemu-tcg` ran outside of it.

"""


def memory_kib(server, pids):
    files = " ".join(f"/proc/{pid}/smaps_rollup" for pid in pids)
    return sum(int(line.split()[1]) for line in server.shell(f"grep -h ^Pss: {files}").splitlines())


async def measure(server):
    figures = {}
    async with server.client() as tools:
        await tools.call("destroy_environment", environment_id=(await create(tools))["environment_id"])
        starts, booted, ends = [], [], []
        for _ in range(STARTS):
            began = time.monotonic()
            one = (await create(tools))["environment_id"]
            made = time.monotonic()
            looked = time.monotonic()
            ran = await tools.call("execute", environment_id=one, code="cut -d' ' -f1 /proc/uptime")
            took = (time.monotonic() - looked) / 2
            kernel_s = float(ran["stdout"]) - took - (looked - made)
            starts.append(made - began)
            booted.append(kernel_s)
            ended = time.monotonic()
            await tools.call("destroy_environment", environment_id=one)
            ends.append(time.monotonic() - ended)
        figures["create"] = f"{statistics.median(starts):.2f} s"
        figures["of it: until the kernel starts (disks, runner, VMM)"] = (
            f"{statistics.median(a - b for a, b in zip(starts, booted)):.2f} s"
        )
        figures["of it: kernel, PID 1, agent, hello"] = f"{statistics.median(booted):.2f} s"
        figures["destroy"] = f"{statistics.median(ends):.2f} s"

        one = (await create(tools))["environment_id"]
        await asyncio.sleep(2)
        processes = [pid for pid, _ in server.processes() if pid != server.process.pid]
        figures["processes of a machine"] = str(len(processes))
        figures["memory of an idle machine"] = f"{memory_kib(server, processes) / 1024:.0f} MiB"
        idle = await median(lambda: tools.call("list_environments"))
        asked = await median(lambda: tools.call("list_files", environment_id=one, path="/etc"))
        ran = await median(lambda: tools.call("execute", environment_id=one, code="true"))
        figures["call without the guest (list_environments)"] = f"{idle * 1000:.1f} ms"
        figures["call into the guest (list_files)"] = f"{asked * 1000:.1f} ms"
        figures["call that starts a shell (execute true)"] = f"{ran * 1000:.1f} ms"
        # Text, since what JSON has to escape is many times as long for the client.
        text = f"yes {'x' * 4095} | head -c {BULK_MIB << 20}"
        began = time.monotonic()
        await tools.call("execute", environment_id=one, code=text, timeout_seconds=120)
        figures["output out of the guest"] = f"{BULK_MIB / (time.monotonic() - began):.0f} MiB/s"
        await tools.call("destroy_environment", environment_id=one)

        for _ in range(MANY):
            await create(tools)
        await asyncio.sleep(2)
        processes = [pid for pid, _ in server.processes() if pid != server.process.pid]
        figures[f"memory of {MANY} idle machines of one image"] = f"{memory_kib(server, processes) / 1024:.0f} MiB"
    return figures


async def create(tools):
    return await tools.call("create_environment", runtime="shell")


async def median(call):
    times = []
    for _ in range(CALLS):
        began = time.monotonic()
        await call()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def run(server):
    try:
        server.start()
        return asyncio.run(measure(server))
    finally:
        server.stop()
        server.remove()


def measure_here(places, settings):
    """The figures of libkrun and of QEMU, both on this machine's KVM."""
    if fault := kvm_fault():
        sys.exit(f"--kvm: KVM runs no guest on this machine: {fault}")
    servers = {"krun": lambda: KrunServer(**settings), "qemu-kvm": lambda: Server(**settings, BACKEND="qemu")}
    return {place: run(make()) for place, make in servers.items() if place in places}


def measure_nested(places, settings):
    """The figures of the back ends in a nested host, and of QEMU with emulation here."""
    columns = {}
    if {"krun", "qemu-kvm"} & set(places):
        programs = [shutil.which("qemu-system-x86_64"), shutil.which("vhost-device-vsock")]
        host = NestedHost(BINARY, ["foreign"], ROOT / "target/e2e-image-cache", programs)
        try:
            for place, back_end in (("krun", "krun"), ("qemu-kvm", "qemu")):
                if place in places:
                    columns[place] = run(NestedServer(host, **settings, BACKEND=back_end))
        finally:
            host.stop()
    if "qemu-tcg" in places:
        columns["qemu-tcg"] = run(Server(**settings))
    return columns


def main():
    places = [word for word in sys.argv[1:] if word != "--kvm"] or PLACES
    if unknown := sorted(set(places) - set(PLACES)):
        sys.exit(f"unknown place {unknown[0]}; allowed: {', '.join(PLACES)}")
    image = f"oci:{ROOT / 'target/images/foreign'}"
    settings = {f"IMAGE_{runtime}": image for runtime in ("PYTHON", "NODE", "SHELL")}
    settings |= {"DEFAULT_MEMORY_MB": str(MEMORY_MIB), "DEFAULT_DISK_MB": "256"}
    columns = measure_here(places, settings) if KVM_HERE else measure_nested(places, settings)
    page = HEAD + (ON_KVM if KVM_HERE else NESTED) + "| figure | " + " | ".join(columns) + " |\n"
    page += "| --- |" + " ---: |" * len(columns) + "\n"
    for name in next(iter(columns.values())):
        page += f"| {name} | " + " | ".join(figures[name] for figures in columns.values()) + " |\n"
    print(page)
    if places == PLACES:
        (ROOT / "docs/benchmarks/back-ends.md").write_text(page)


main()
