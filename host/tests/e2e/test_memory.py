# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The memory that machines take from their host."""

import time

BURST_MIB = 150
# The guest's kernel reports free memory every two seconds, and in large pieces only.
GIVEN_BACK_MIN = 0.8
GIVEN_BACK_S = 30


def pss_mib(server):
    """The memory of the processes of machines."""
    files = " ".join(f"/proc/{pid}/smaps_rollup" for pid in server.machines())
    return sum(int(line.split()[1]) for line in server.shell(f"grep -h ^Pss: {files}").splitlines()) / 1024


async def test_memory_that_a_guest_has_freed_goes_back_to_the_host(server):
    async with server.client() as tools, tools.environment("shell") as made:

        async def run(code):
            await tools.call("execute", environment_id=made["environment_id"], code=code)

        await run("true")
        before = pss_mib(server)
        await run(f"head -c {BURST_MIB}M /dev/zero >/dev/shm/burst")
        during = pss_mib(server)
        assert during - before > BURST_MIB * 0.9, (before, during)
        await run("rm /dev/shm/burst")
        deadline = time.monotonic() + GIVEN_BACK_S
        while (after := pss_mib(server)) > during - BURST_MIB * GIVEN_BACK_MIN:
            assert time.monotonic() < deadline, (before, during, after)
            time.sleep(0.5)
        print(f"{before:.0f} MiB before, {during:.0f} MiB with {BURST_MIB} MiB in use, {after:.0f} MiB after")
