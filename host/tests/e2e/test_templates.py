# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Machines start from templates, and share nothing with each other that a user can see."""

import asyncio
import contextlib
import json
import os
import pathlib
import stat
import time

from server import CALL_S, ON_DEMAND, TEMPLATE_READY
from test_identity import SHOWN
from test_memory import BURST_MIB, GIVEN_BACK_MIN, GIVEN_BACK_S

CLONES = 10

# A QEMU that starts no machine from a snapshot.
BROKEN_QEMU = """#!/bin/sh
case "$*" in
  *-incoming*) echo "no snapshots here" >&2; exit 1 ;;
esac
exec /usr/bin/qemu-system-x86_64 "$@"
"""


def wait_for(server, text, times=1):
    deadline = time.monotonic() + CALL_S
    while server.output().count(text) < times:
        assert time.monotonic() < deadline, f"no {text!r}:\n{server.output()}"
        time.sleep(0.1)


def copies(server):
    """The processes of machines that started from a template."""
    return [pid for pid in server.machines() if "-incoming" in server.shell(f"tr '\\0' ' ' </proc/{pid}/cmdline")]


async def test_copies_of_a_template_have_nothing_of_their_own_in_common(serve):
    server = serve(**ON_DEMAND, MAX_ENVIRONMENTS=str(CLONES + 1)).start()
    async with server.client() as tools, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(tools.environment("python"))
        assert copies(server) == []
        wait_for(server, TEMPLATE_READY)
        # The clock of the template stands still.
        await asyncio.sleep(3)
        made = [await stack.enter_async_context(tools.environment("python")) for _ in range(CLONES)]
        assert len(copies(server)) == CLONES
        # No file or process of one is that of another.
        mark = "import os; print(os.path.exists('mark')); open('mark', 'w')"
        shown = []
        for one in [first, *made]:
            ran = await tools.call("execute", environment_id=one["environment_id"], code=mark)
            assert ran["stdout"] == "False\n", ran
            ran = await tools.call("execute", environment_id=one["environment_id"], code=SHOWN)
            shown.append(json.loads(ran["stdout"]))
            before = time.time()
            ran = await tools.call("execute", environment_id=one["environment_id"], code="import time; print(time.time())")
            assert before - 1 < float(ran["stdout"]) < time.time() + 1, ran
        for name in shown[0]:
            values = [one[name] for one in shown]
            assert len(set(values)) == len(values), (name, values)


async def test_memory_that_a_copy_has_freed_goes_back_to_the_host(serve):
    server = serve(**ON_DEMAND).start()
    async with server.client() as tools:
        async with tools.environment("shell"):
            wait_for(server, TEMPLATE_READY)
        async with tools.environment("shell") as made:
            [pid] = copies(server)

            def private_mib():
                rollup = server.shell(f"grep ^Private_Dirty: /proc/{pid}/smaps_rollup")
                return int(rollup.split()[1]) / 1024

            async def run(code):
                return await tools.call("execute", environment_id=made["environment_id"], code=code)

            await run("true")
            before = private_mib()
            await run(f"head -c {BURST_MIB}M /dev/zero >/dev/shm/burst")
            during = private_mib()
            assert during - before > BURST_MIB * 0.9, (before, during)
            await run("rm /dev/shm/burst")
            deadline = time.monotonic() + GIVEN_BACK_S
            while (after := private_mib()) > during - BURST_MIB * GIVEN_BACK_MIN:
                assert time.monotonic() < deadline, (before, during, after)
                time.sleep(0.5)
            # The kernel reads zeros where the host has put the template's pages back.
            ran = await run("head -c 100M /dev/zero >/dev/shm/again; tr -d '\\0' </dev/shm/again | wc -c")
            assert ran["stdout"].strip() == "0", ran
        # The template itself is unchanged.
        async with tools.environment("shell") as made:
            ran = await tools.call("execute", environment_id=made["environment_id"], code="ls /dev/shm | wc -l")
            assert ran["stdout"] == "0\n", ran


async def test_a_machine_that_cannot_start_from_its_template_boots(serve, tmp_path):
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(BROKEN_QEMU)
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    tmp_path.chmod(0o755)
    server = serve(**ON_DEMAND)
    server.through = ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]
    server.start()
    async with server.client() as tools:
        async with tools.environment("shell"):
            wait_for(server, TEMPLATE_READY)
        for _ in range(2):
            async with tools.environment("shell") as made:
                ran = await tools.call("execute", environment_id=made["environment_id"], code="echo up")
                assert ran["stdout"] == "up\n", ran
        # A template that does not work is not tried again.
        assert server.output().count("it boots instead") == 1, server.output()
        server.assert_nothing_left(within_s=5)


async def test_templates_are_bounded_and_callers_have_their_own(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("ada " + "a" * 32 + "\nbob " + "b" * 32 + "\n")
    tokens.chmod(0o600)
    server = serve(**ON_DEMAND | {"AUTH_TOKENS_FILE": str(tokens), "TEMPLATES": "1", "WARM_TEMPLATES": "false"}).start()
    for times, token in enumerate(["a" * 32, "b" * 32], 1):
        async with server.client(token) as tools, tools.environment("shell"):
            assert copies(server) == []
            wait_for(server, TEMPLATE_READY, times)
    run = pathlib.Path(server.data) / "machines"
    assert len([folder for folder in run.glob("*/template-*") if folder.is_dir()]) == 1
    # Bob's template has replaced Ada's.
    async with server.client("b" * 32) as tools, tools.environment("shell"):
        assert len(copies(server)) == 1
    async with server.client("a" * 32) as tools, tools.environment("shell"):
        assert copies(server) == []


async def test_a_server_that_ends_while_it_makes_a_template_leaves_nothing(serve):
    server = serve(**ON_DEMAND).start()
    async with server.client() as tools, tools.environment("shell"):
        pass
    await asyncio.sleep(0.5)
    server.stop()
    server.assert_nothing_left()
    server.start()
    async with server.client() as tools, tools.environment("shell"):
        await asyncio.sleep(0.5)
    server.kill()
    server.assert_nothing_left(within_s=10)
