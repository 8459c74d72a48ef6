# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the ways to start an environment: a boot, a template, a warm template, a fork, and a saved environment.

`./taskw bench-snapshots` builds everything that the benchmark needs and starts it. The benchmark prints the page
docs/benchmarks/snapshots.md, and writes it unless --quick is given. ROUNDS sets the number of starts of each kind.
"""

import asyncio
import contextlib
import os
import pathlib
import re
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("WAGGLE_BINARY", str(ROOT / "target/release/waggle"))
sys.path.insert(0, str(ROOT / "host/tests/e2e"))

from hardware import processors  # noqa: E402
from server import ON_DEMAND, TEMPLATE_READY, Server  # noqa: E402

QUICK = "--quick" in sys.argv[1:]
ROUNDS = int(os.environ.get("ROUNDS", "5" if QUICK else "50"))
CROWDS = [1, 10] if QUICK else [1, 10, 30]
TOUCHED_MIB = [64] if QUICK else [64, 400]
# Enough for thirty machines with 400 MiB in use in one of them.
MEMORY_MB = 512
PROGRAM = "import json, re, random, uuid; print(random.random(), uuid.uuid4())"
STOOD_STILL = re.compile(r"stood_still_us=(\d+)")
SETTLED_S = 4

# The settings of each way to start.
WAYS = {
    "boot": {"TEMPLATES": "0"},
    "template": {"WARM_TEMPLATES": "false"},
    "warm template": {},
}


class Bench(Server):
    def __init__(self, **settings):
        super().__init__(
            MAX_ENVIRONMENTS="40",
            DEFAULT_MEMORY_MB=str(MEMORY_MB),
            TEMPLATES_MAX_MB="4096",
            EGRESS="none",
            **ON_DEMAND | settings,
        )

    def wait_for_template(self):
        if self.settings.get("TEMPLATES") == "0":
            return
        while TEMPLATE_READY not in self.output():
            time.sleep(0.1)
        time.sleep(1)

    def memory_mib(self):
        files = " ".join(f"/proc/{pid}/smaps_rollup" for pid, _ in self.processes() if pid != self.process.pid)
        return sum(int(line.split()[1]) for line in self.shell(f"grep -h ^Pss: {files}").splitlines()) / 1024


async def timed(call):
    began = time.monotonic()
    result = await call
    return time.monotonic() - began, result


async def start(tools, language, **source):
    """Starts an environment. Returns its id, and the times to its readiness, its first call and its first program."""
    arguments = source or {"language": language}
    created, made = await timed(tools.call("create_environment", **arguments))
    one = made["environment_id"]
    called, _ = await timed(tools.call("execute", environment_id=one, language="shell", code="true"))
    code = PROGRAM if language == "python" else "ls / | wc -l"
    ran, _ = await timed(tools.call("execute", environment_id=one, language=language, code=code))
    again, _ = await timed(tools.call("execute", environment_id=one, language=language, code=code))
    return one, (created, created + called, ran, again)


async def destroy(tools, one, **options):
    await tools.call("destroy_environment", environment_id=one, **options)


async def rounds(tools, language, prepare=None):
    """The times of many starts, one after the other."""
    times = []
    for _ in range(ROUNDS):
        source = await prepare() if prepare else {}
        one, took = await start(tools, language, **source)
        times.append(took)
        await destroy(tools, one)
    return times


async def measure_starts(language):
    found = {}
    for way, settings in WAYS.items():
        async with serving(settings) as (server, tools):
            # The first environment causes the template.
            one, _ = await start(tools, language)
            server.wait_for_template()
            found[way] = await rounds(tools, language)
            if way != "warm template":
                continue

            async def fork(one=one):
                return {"fork_of": one}

            async def save(tools=tools):
                used, _ = await start(tools, language)
                await destroy(tools, used, save_as="bench")
                return {"saved": "bench"}

            found["fork"] = await rounds(tools, language, fork)
            found["saved"] = await rounds(tools, language, save)
    return found


async def measure_crowds():
    """The time until many environments are ready that are created at once, and the memory of each."""
    lines = []
    for way in ("boot", "warm template"):
        for count in CROWDS:
            async with serving(WAYS[way]) as (server, tools):
                one, _ = await start(tools, "python")
                server.wait_for_template()
                await destroy(tools, one)
                began = time.monotonic()
                creates = [timed(tools.call("create_environment", language="python")) for _ in range(count)]
                made = await asyncio.gather(*creates)
                took = time.monotonic() - began
                ids = [environment["environment_id"] for _, environment in made]
                await asyncio.sleep(SETTLED_S)
                idle = server.memory_mib() / count
                for one in ids:
                    await tools.call("execute", environment_id=one, code=PROGRAM)
                used = server.memory_mib() / count
                lines.append(f"| {way} | {count} | {took:.2f} | {idle:.0f} | {used:.0f} |")
    return lines


async def measure_standstills():
    lines = []
    for touched in TOUCHED_MIB:
        async with serving({}) as (server, tools):
            one, _ = await start(tools, "shell")
            server.wait_for_template()
            await destroy(tools, one)
            one, _ = await start(tools, "shell")
            # In blocks, because `head` has little memory itself.
            code = f"head -c {touched}M /dev/urandom >/dev/shm/touched"
            await tools.call("execute", environment_id=one, code=code, timeout_seconds=300)
            before = len(STOOD_STILL.findall(server.output()))
            took = []
            for _ in range(5):
                seconds, made = await timed(tools.call("create_environment", fork_of=one))
                took.append(seconds)
                await destroy(tools, made["environment_id"])
            still = [int(found) / 1000 for found in STOOD_STILL.findall(server.output())[before:]]
            lines.append(f"| {touched} | {statistics.median(still):.0f} | {max(still):.0f} | {statistics.median(took):.2f} |")
    return lines


@contextlib.asynccontextmanager
async def serving(settings):
    server = Bench(**settings).start()
    try:
        async with server.client() as tools:
            yield server, tools
    finally:
        server.stop()
        server.remove()


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def starts_table(found):
    base = statistics.median(times[1] for times in found["boot"])
    lines = [
        "| way | ready, p50 | p99 | and first call, p50 | p99 | ratio | first program | second |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, times in found.items():
        ready, called, ran, again = zip(*times)
        columns = [statistics.median(ready), percentile(ready, 0.99), statistics.median(called), percentile(called, 0.99)]
        columns = [f"{1000 * column:.0f}" for column in columns]
        columns += [f"{statistics.median(called) / base:.2f}", f"{1000 * statistics.median(ran):.0f}"]
        lines.append(f"| {way} | {' | '.join(columns)} | {1000 * statistics.median(again):.0f} |")
    return lines


async def main():
    page = [
        "# Snapshots",
        "",
        "`./taskw bench-snapshots` measures this and writes this page. QEMU with software emulation, machines of",
        f"{MEMORY_MB} MiB with one processor; {ROUNDS} starts of each kind, one after the other. This run: {processors()}.",
        "",
        "A *boot* starts the kernel. A *template* is a machine that has booted; a *warm* one has also run its interpreters. A",
        "*fork* copies a running environment, and a *saved* one was written to the disk and is read from it.",
        "",
    ]
    for language in ("shell", "python"):
        page += [f"## {language}: times in ms", "", *starts_table(await measure_starts(language)), ""]
    page += [
        "## Many python environments at once",
        "",
        "| way | environments | s until all are ready | MiB each, idle | MiB each, after a program |",
        "| --- | ---: | ---: | ---: | ---: |",
        *await measure_crowds(),
        "",
        "## Standstill of an environment that is forked",
        "",
        "| MiB in use | ms, median of 5 | ms, longest | s until the fork is ready |",
        "| ---: | ---: | ---: | ---: |",
        *await measure_standstills(),
    ]
    text = "\n".join(page) + "\n"
    print(text)
    if not QUICK:
        (ROOT / "docs/benchmarks/snapshots.md").write_text(text)


asyncio.run(main())
