# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the back ends: libkrun and QEMU with KVM in a nested host, and QEMU with emulation on this machine.

`./taskw bench-back-ends` builds everything that the benchmark needs and starts it. Its arguments select the setups to
measure: krun, qemu-kvm, qemu-tcg. The default is all of them. With --kvm, krun and qemu-kvm run directly on this machine's
KVM, and qemu-tcg is not measured.
The benchmark prints the page docs/benchmarks/back-ends.md, and writes the page if all setups were measured.
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
# Small enough for ten machines in the nested host, and large enough for libkrun's kernel.
MEMORY_MIB = 192
KVM_HERE = "--kvm" in sys.argv[1:]
SETUPS = ["krun", "qemu-kvm"] if KVM_HERE else ["krun", "qemu-kvm", "qemu-tcg"]
COMMAND = "./taskw bench-back-ends" + (" -- --kvm" if KVM_HERE else "")
HEAD = f"""# Back ends

`{COMMAND}` measures this and writes this page. Medians of {STARTS} starts and {CALLS} calls; machines of
{MEMORY_MIB} MiB with one processor.

"""
ON_KVM = f"""Both ran on the KVM of one machine. This run: {processors()}.

"""
NESTED = """`krun` and `qemu-kvm` ran in a nested host, whose processor and KVM are emulated. Their figures are comparable
with each other, but not with figures of real hardware. `qemu-tcg` ran outside the nested host.

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
        figures["create, until the kernel starts (disks, runner, VMM)"] = (
            f"{statistics.median(a - b for a, b in zip(starts, booted)):.2f} s"
        )
        figures["create, after that (kernel, PID 1, agent, hello)"] = f"{statistics.median(booted):.2f} s"
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
        # Printable text, because escapes would make the JSON many times longer for the client.
        text = f"yes {'x' * 4095} | head -c {BULK_MIB << 20}"
        began = time.monotonic()
        await tools.call("execute", environment_id=one, code=text, timeout_seconds=120)
        figures["output from the guest"] = f"{BULK_MIB / (time.monotonic() - began):.0f} MiB/s"
        await tools.call("destroy_environment", environment_id=one)

        for _ in range(MANY):
            await create(tools)
        await asyncio.sleep(2)
        processes = [pid for pid, _ in server.processes() if pid != server.process.pid]
        figures[f"memory of {MANY} idle machines of one image"] = f"{memory_kib(server, processes) / 1024:.0f} MiB"
    return figures


async def create(tools):
    return await tools.call("create_environment", language="shell")


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


def measure_here(setups, settings):
    """Returns the figures of libkrun and of QEMU, both on this machine's KVM."""
    if fault := kvm_fault():
        sys.exit(f"--kvm: KVM cannot run a guest on this machine: {fault}")
    servers = {"krun": lambda: KrunServer(**settings), "qemu-kvm": lambda: Server(**settings, BACKEND="qemu")}
    return {setup: run(make()) for setup, make in servers.items() if setup in setups}


def measure_nested(setups, settings):
    """Returns the figures of the back ends in a nested host, and of QEMU with emulation on this machine."""
    columns = {}
    if {"krun", "qemu-kvm"} & set(setups):
        programs = [shutil.which("qemu-system-x86_64")]
        host = NestedHost(BINARY, ["foreign"], ROOT / "target/e2e-image-cache", programs)
        try:
            for setup, back_end in (("krun", "krun"), ("qemu-kvm", "qemu")):
                if setup in setups:
                    columns[setup] = run(NestedServer(host, **settings, BACKEND=back_end))
        finally:
            host.stop()
    if "qemu-tcg" in setups:
        columns["qemu-tcg"] = run(Server(**settings))
    return columns


def main():
    setups = [word for word in sys.argv[1:] if word != "--kvm"] or SETUPS
    if unknown := sorted(set(setups) - set(SETUPS)):
        sys.exit(f"unknown setup {unknown[0]}; allowed: {', '.join(SETUPS)}")
    image = f"oci:{ROOT / 'target/images/foreign'}"
    settings = {f"IMAGE_{runtime}": image for runtime in ("PYTHON", "NODE", "SHELL")}
    settings |= {"DEFAULT_MEMORY_MB": str(MEMORY_MIB), "DEFAULT_DISK_MB": "256"}
    columns = measure_here(setups, settings) if KVM_HERE else measure_nested(setups, settings)
    page = HEAD + (ON_KVM if KVM_HERE else NESTED) + "| figure | " + " | ".join(columns) + " |\n"
    page += "| --- |" + " ---: |" * len(columns) + "\n"
    for name in next(iter(columns.values())):
        page += f"| {name} | " + " | ".join(figures[name] for figures in columns.values()) + " |\n"
    print(page)
    if setups == SETUPS:
        (ROOT / "docs/benchmarks/back-ends.md").write_text(page)


main()
