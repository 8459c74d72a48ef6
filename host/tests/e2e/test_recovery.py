# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Ends of servers and machines, most of them unplanned, leave nothing behind."""

import asyncio
import os
import signal
import time

import pytest

from server import ORPHAN_S, WITHOUT_KVM

ROUNDS = int(os.environ.get("WAGGLE_ROUNDS", "10"))
# With each number of processors.
BOOTS = int(os.environ.get("WAGGLE_BOOTS", "2"))
# A lost machine is detected at once; the rest allows for a busy test machine.
NOTICE_S = 20


async def test_a_killed_server_leaves_no_machine(serve):
    server = serve().start()
    async with server.client() as tools:
        await tools.call("create_environment", language="shell")
        assert server.machines()
        server.kill()
        # The client does not notice: when it closes, it contacts a server that no longer exists.
        deadline = time.monotonic() + ORPHAN_S
        while server.processes() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert server.processes() == []
    # The next server on the same folder removes what the first one left.
    server.start()
    server.assert_nothing_left()


async def test_a_machine_that_dies_becomes_an_error(server):
    async with server.client() as tools:
        made = await tools.call("create_environment", language="shell")
        one = made["environment_id"]
        server.signal(server.machines(), signal.SIGKILL)
        assert await becomes(tools, one, "error")
        assert await tools.fault("execute", environment_id=one, code="true") == "environment_not_running"
        await tools.call("destroy_environment", environment_id=one)
        server.assert_nothing_left()


async def test_a_call_ends_when_its_machine_dies(server):
    async with server.client() as tools:
        made = await tools.call("create_environment", language="shell")
        one = made["environment_id"]

        async def kill_soon():
            await asyncio.sleep(1.0)
            server.signal(server.machines(), signal.SIGKILL)

        started = time.monotonic()
        killer = asyncio.create_task(kill_soon())
        ended = await tools.fault("execute", environment_id=one, code="sleep 100", timeout_seconds=120)
        assert ended == "environment_not_running"
        await killer
        assert time.monotonic() - started < NOTICE_S
        await tools.raw("destroy_environment", environment_id=one)
        server.assert_nothing_left()


async def test_capacity_is_exact_and_a_destroyed_environment_frees_it(serve):
    server = serve(MAX_ENVIRONMENTS="1").start()
    async with server.client() as tools:
        async with tools.environment("shell"):
            assert await tools.fault("create_environment", language="shell") == "capacity_reached"
        async with tools.environment("shell") as made:
            assert made["status"] == "running"


async def test_a_server_that_stops_ends_its_machines(serve):
    server = serve().start()
    async with server.client() as tools:
        await asyncio.gather(*(tools.call("create_environment", language="shell") for _ in range(2)))
        assert len(server.machines()) == 2
    server.stop()
    server.assert_nothing_left()


# A round takes 3 s on an idle machine, ten times that on a very busy one.
@pytest.mark.timeout(60 + 30 * ROUNDS)
async def test_rounds_of_create_and_destroy_leave_nothing(server):
    async with server.client() as tools:
        before = None
        for number in range(ROUNDS):
            made = await tools.call("create_environment", language="shell")
            ran = await tools.call("execute", environment_id=made["environment_id"], code=f"echo {number}")
            assert ran["stdout"] == f"{number}\n"
            await tools.call("destroy_environment", environment_id=made["environment_id"])
            server.assert_nothing_left()
            held = server.open_files()
            # The first round opens files that stay open.
            before = before or held
            assert held <= before + 2, f"{held} open files after round {number + 1}, {before} after the first"


@pytest.mark.timeout(60 + 30 * BOOTS)
@pytest.mark.parametrize("cpus", [1, 2, 4])
async def test_rounds_of_boots_with_several_processors_never_fail(serve, request, cpus):
    server = serve(DEFAULT_CPUS=str(cpus))
    if not request.config.option.kvm and not server.host:
        server.through = WITHOUT_KVM
    server.start()
    async with server.client() as tools:
        for _ in range(BOOTS):
            async with tools.environment("shell") as made:
                ran = await tools.call("execute", environment_id=made["environment_id"], code="nproc")
                assert ran["stdout"] == f"{cpus}\n"


async def becomes(tools, one, status):
    """Whether an environment reaches a status in time."""
    deadline = time.monotonic() + NOTICE_S
    while time.monotonic() < deadline:
        listed = await tools.call("list_environments")
        if [each["status"] for each in listed["environments"] if each["environment_id"] == one] == [status]:
            return True
        await asyncio.sleep(0.1)
    return False
