# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a report about a host with KVM: its processor and kernel, the back ends that work, timings, and tests' results.

`./taskw kvm-report` builds everything that the report needs and starts it. The report is printed, and written to
target/kvm-report.md. It contains no names of hosts, users or folders, so it can be published.

Arguments: back ends to try (krun, msb, qemu; the default is all of them); --quick runs only the tests of `smoke`;
--nested tries the report itself, in a nested host with an emulated processor, on a machine without KVM.
"""

import argparse
import asyncio
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("WAGGLE_BINARY", str(ROOT / "target/release/waggle"))
sys.path.insert(0, str(ROOT / "host/tests/e2e"))

from hardware import processors  # noqa: E402
from krun_server import KrunServer  # noqa: E402
from nested import LIBRARY, NestedHost  # noqa: E402
from nested_server import NestedServer  # noqa: E402
from server import BINARY, Server, image, kvm_fault  # noqa: E402

NAMES = {"krun": "libkrun", "msb": "msb_krun", "qemu": "QEMU with KVM"}
# The back ends whose tests run in the same way on KVM and in a nested host. QEMU's tests do not need KVM.
TESTED = ["krun", "msb"]
STARTS = int(os.environ.get("STARTS", "20"))
CALLS = 40
MEMORY_MIB = 256
# Parameters of KVM's modules that decide how guests run.
PARAMETERS = ["nested", "ept", "npt", "unrestricted_guest", "enable_apicv", "avic"]
PAGE = ROOT / "target/kvm-report.md"


def describe_host():
    """Returns rows of a table about this machine."""
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    memory_kib = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    modules = sorted(place for place in pathlib.Path("/sys/module").glob("kvm*") if place.is_dir())
    found = [place.name for place in modules]
    for place in modules:
        files = [place / "parameters" / name for name in PARAMETERS]
        found += [f"{place.name}.{file.name}={file.read_text().strip()}" for file in files if file.exists()]
    version = subprocess.run([BINARY, "version"], capture_output=True, text=True, check=True).stdout
    return {
        "processor": processors(),
        "itself a virtual machine": "yes" if re.search(r"^flags.*\bhypervisor\b", flags, re.MULTILINE) else "no",
        "memory": f"{memory_kib >> 20} GiB",
        "system": release,
        "kernel": platform.release(),
        "KVM": ", ".join(found) or "none",
        "firmware": LIBRARY.name if LIBRARY else "none",
        "waggle": version.splitlines()[0],
    }


def percentiles(times):
    """Returns the median and the 90th percentile, in milliseconds."""
    ordered = sorted(times)
    last = ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]
    return f"{statistics.median(ordered) * 1000:.0f} / {last * 1000:.0f}"


async def timed(call):
    began = time.monotonic()
    answer = await call
    return time.monotonic() - began, answer


async def measure(server):
    """Returns timings of a running server."""
    creates, firsts, calls, ends = [], [], [], []
    async with server.client() as tools:
        # Prepares the image.
        made = await tools.call("create_environment", language="shell")
        await tools.call("destroy_environment", environment_id=made["environment_id"])
        for _ in range(STARTS):
            took, made = await timed(tools.call("create_environment", language="shell"))
            one = made["environment_id"]
            creates.append(took)
            firsts.append((await timed(tools.call("execute", environment_id=one, code="true")))[0])
            if not calls:
                calls = [(await timed(tools.call("execute", environment_id=one, code="true")))[0] for _ in range(CALLS)]
            ends.append((await timed(tools.call("destroy_environment", environment_id=one)))[0])
    return {
        "create": percentiles(creates),
        "first execute": percentiles(firsts),
        "later execute": percentiles(calls),
        "destroy": percentiles(ends),
    }


def try_back_end(server):
    """Returns what the server says of its back end, and its timings, or why there are none."""
    try:
        server.start()
        chosen = re.search(r"\bmsb_krun \(|\blibkrun \(|\bqemu with KVM|\bqemu, software emulation", server.output())
        figures = asyncio.run(measure(server))
        server.stop()
        return f"works: {chosen[0].rstrip(' (') if chosen else 'unknown back end'}", figures
    except Exception as fault:
        lines = [line for line in (server.output() or str(fault)).splitlines() if line.strip()]
        folders = [str(ROOT), str(server.folder), str(pathlib.Path.home())]
        last = re.sub("|".join(map(re.escape, folders)), "…", lines[-1] if lines else "no output")
        return f"failed: {type(fault).__name__}; the server's last line: `{last[:300]}`", {}
    finally:
        server.remove()


def run_tests(name, arguments):
    """Returns the summary of the end-to-end tests with this back end, and the names of those that failed."""
    command = [ROOT / "host/tests/e2e/run", "--back-end", name, "-q", *arguments]
    print(f"kvm-report: runs the tests of {NAMES[name]}", file=sys.stderr)
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    summary = re.findall(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*?)\s*=*$", output, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return summary[-1] if summary else "the tests did not run", failed


def page(host, results, tests, environment):
    lines = ["# waggle on KVM", "", environment, "", "| host | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in host.items()]
    lines += ["", f"Milliseconds, median / 90th percentile of {STARTS} machines of {MEMORY_MIB} MiB.", ""]
    figures = ["create", "first execute", "later execute", "destroy"]
    lines += ["| back end | result | " + " | ".join(figures) + " |", "| --- | --- |" + " ---: |" * len(figures)]
    for name, (result, times) in results.items():
        lines.append(f"| {NAMES[name]} | {result} | " + " | ".join(times.get(figure, "") for figure in figures) + " |")
    lines += ["", "| end-to-end tests | result |", "| --- | --- |"]
    for name, (summary, failed) in tests.items():
        lines.append(f"| {NAMES[name]} | {summary}{''.join(f'<br>failed: {test}' for test in failed)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("back_ends", nargs="*", help=f"the back ends to try, of {', '.join(NAMES)}; the default is all")
    parser.add_argument("--quick", action="store_true", help="run only the tests of `smoke`")
    parser.add_argument("--nested", action="store_true", help="run in a nested host with an emulated processor")
    arguments = parser.parse_args()
    back_ends = arguments.back_ends or list(NAMES)
    if unknown := sorted(set(back_ends) - set(NAMES)):
        sys.exit(f"unknown back end {unknown[0]}; allowed: {', '.join(NAMES)}")
    if not arguments.nested and (fault := kvm_fault()):
        sys.exit(f"kvm-report: KVM runs no guest on this machine: {fault}; --nested tries the report without KVM")
    settings = {f"IMAGE_{runtime}": image("shell") for runtime in ("PYTHON", "NODE", "SHELL")}
    settings |= {"DEFAULT_MEMORY_MB": str(MEMORY_MIB), "DEFAULT_DISK_MB": "256"}
    if arguments.nested:
        environment = "The machines ran in a nested host with an emulated processor; real hardware is faster."
        programs = [shutil.which("qemu-system-x86_64")] if "qemu" in back_ends else []
        nested = NestedHost(BINARY, ["shell"], ROOT / "target/e2e-image-cache", programs)
        try:
            results = {name: try_back_end(NestedServer(nested, **settings, BACKEND=name)) for name in back_ends}
        finally:
            nested.stop()
    else:
        environment = "The machines ran on this machine's KVM."
        makers = {"qemu": Server, "krun": KrunServer, "msb": KrunServer}
        results = {name: try_back_end(makers[name](**settings, BACKEND=name)) for name in back_ends}
    options = (["-m", "smoke"] if arguments.quick else ["-m", "not packages"]) + ([] if arguments.nested else ["--kvm"])
    tests = {name: run_tests(name, options) for name in TESTED if name in back_ends and results[name][1]}
    text = page(describe_host(), results, tests, environment)
    PAGE.write_text(text)
    print(text)


main()
