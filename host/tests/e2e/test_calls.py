# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Ending a call kills everything that it started; calls that use too much harm only themselves."""

import asyncio
import json
import time

import pytest

# Maximum time until a cancelled call has ended, on a busy machine with emulation.
GONE_S = 20
# Maximum time until another call is answered while a fork bomb runs, on such a machine.
ANSWER_S = 60

# Programs that make the file `started` and then never end.
PROGRAMS = {
    "a shell's children": ("shell", "sleep 1000 & (sleep 1000; :) & sh -c 'sleep 1000; :' & touch started; wait"),
    "a flood of output": ("shell", "sleep 1000 & touch started; exec cat /dev/zero"),
    "double forks in a flood": (
        "python",
        """
import os, time
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
open("started", "w").close()
while True: os.write(1, b"x" * 65536); os.write(2, b"y" * 65536)
""",
    ),
    "processes that leave the session": (
        "python",
        """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setpgid(0, 0)
            os.closerange(0, 3)
            time.sleep(1000)
        os._exit(0)
open("started", "w").close()
time.sleep(1000)
""",
    ),
    "processes that ignore signals, in a flood": (
        "python",
        """
import os, signal, time
for one in range(1, 65):
    try: signal.signal(one, signal.SIG_IGN)
    except (OSError, ValueError): pass
if os.fork() == 0:
    time.sleep(1000)
open("started", "w").close()
while True: os.write(1, b"x" * 65536)
""",
    ),
    "stopped processes": (
        "python",
        """
import os, signal, time
for _ in range(3):
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
open("started", "w").close()
os.kill(os.getpid(), signal.SIGSTOP)
""",
    ),
    "a fork bomb": (
        "python",
        """
import os
open("started", "w").close()
while True:
    try: os.fork()
    except OSError: pass
""",
    ),
}

# Prints the live user processes of the machine, without this one and the sandbox's init process.
LEFT = """
import os
left = []
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        try: stat = open(f"/proc/{name}/stat").read()
        except OSError: continue
        if stat.rsplit(")")[1].split()[0] not in "ZX": left.append(stat[:80])
print(left)
"""


async def assert_nothing_left(tools, one, name):
    ran = await tools.call("execute", environment_id=one, code=LEFT)
    assert (ran["stdout"], ran["stderr"]) == ("[]\n", ""), name


async def until_started(tools, one, name):
    deadline = time.monotonic() + ANSWER_S
    while True:
        listed = await tools.call("list_files", environment_id=one)
        if any(file["name"] == "started" for file in listed["files"]):
            break
        assert time.monotonic() < deadline, name
        await asyncio.sleep(0.1)
    # Time for the program to reach full speed.
    await asyncio.sleep(0.5)


async def test_a_timeout_kills_everything_the_call_started(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        for name, (language, code) in PROGRAMS.items():
            started = time.monotonic()
            result = await tools.raw("execute", environment_id=one, code=code, language=language, timeout_seconds=3)
            took = time.monotonic() - started
            assert result.is_error and result.structured_content["timed_out"] is True, name
            # Programs may end with the SIGTERM, or ignore it and be killed.
            assert result.structured_content["exit_code"] in (143, 137), name
            assert 3 <= took < 3 + GONE_S, f"{name}: {took}"
            await assert_nothing_left(tools, one, name)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_cancelling_a_call_kills_everything_it_started(server, mode):
    """In a session, the official client sends notifications/cancelled; without a session, it closes the response."""
    async with server.client(mode=mode) as caller, server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        for name, (language, code) in PROGRAMS.items():
            call = caller.raw("execute", environment_id=one, code=code, language=language, timeout_seconds=200)
            running = asyncio.create_task(call)
            await until_started(tools, one, name)
            assert not running.done(), f"{name}: {running.result()}"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            cancelled = time.monotonic()
            while True:
                ran = await tools.call("execute", environment_id=one, code=LEFT)
                if ran["stdout"] == "[]\n":
                    break
                assert time.monotonic() - cancelled < GONE_S, f"{name}: {ran['stdout']}"
            await tools.call("execute", environment_id=one, code="import os; os.remove('started')")


async def test_a_background_server_outlives_its_call_and_not_its_environment(server):
    serve = "cd /tmp; echo served >page; python3 -m http.server 8000 --bind 127.0.0.1 >log 2>&1 & echo $!"
    fetch = """
import time, urllib.request
for _ in range(200):
    try: print(urllib.request.urlopen("http://127.0.0.1:8000/page").read().decode(), end=""); break
    except OSError: time.sleep(0.1)
"""
    async with server.client() as tools:
        async with tools.environment("python") as made:
            one = made["environment_id"]
            ran = await tools.call("execute", environment_id=one, language="shell", code=serve)
            assert ran["exit_code"] == 0 and int(ran["stdout"]) > 1
            # A background process that keeps its call's pipes open does not delay the call.
            held = await tools.call("execute", environment_id=one, language="shell", code="sleep 1000 & echo at once")
            assert (held["stdout"], held["duration_ms"] < 20_000) == ("at once\n", True)
            for _ in range(2):
                ran = await tools.call("execute", environment_id=one, code=fetch)
                assert ran["stdout"] == "served\n", ran
        server.assert_nothing_left()


async def test_a_memory_hog_is_reported_and_harms_nothing_else(server):
    hog = "print('before', flush=True)\nhog = []\nwhile True: hog.append(bytearray(b'x') * (8 << 20))"
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        keeper = "sleep 1000 & echo $!"
        kept = (await tools.call("execute", environment_id=one, language="shell", code=keeper))["stdout"].strip()
        for _ in range(2):
            ran = await tools.call("execute", environment_id=one, code=hog, timeout_seconds=120)
            assert (ran["out_of_memory"], ran["exit_code"], ran["signal"]) == (True, 137, 9), ran
            assert ran["stdout"] == "before\n"
        alive = await tools.call("execute", environment_id=one, language="shell", code=f"kill -0 {kept} && echo alive")
        assert alive["stdout"] == "alive\n"
        assert "out_of_memory" not in alive


async def test_the_operators_limits_hold_for_each_call(serve):
    settings = {"EXEC_MEMORY_MB": "64", "EXEC_PIDS": "32", "EXEC_OPEN_FILES": "100"}
    code = """
import os, time
files = []
try:
    while True: files.append(os.open("/dev/null", 0))
except OSError as fault: print(fault.strerror, files[-1])
for one in files: os.close(one)
children = 0
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
        children += 1
except OSError as fault: print(fault.strerror, children)
"""
    server = serve(**settings).start()
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        ran = await tools.call("execute", environment_id=one, code=code)
        assert ran["stdout"] == "Too many open files 99\nResource temporarily unavailable 31\n", ran
        # Those children keep running; the next call has its own limits.
        ran = await tools.call("execute", environment_id=one, code="print(len(bytearray(b'x') * (40 << 20)))")
        assert ran["stdout"] == f"{40 << 20}\n", ran
        ran = await tools.call("execute", environment_id=one, code="print(len(bytearray(b'x') * (100 << 20)))")
        assert (ran["out_of_memory"], ran["signal"], ran["stdout"]) == (True, 9, ""), ran


async def test_an_environment_with_a_fork_bomb_answers_and_can_be_destroyed(server):
    async with server.client() as tools:
        made = await tools.call("create_environment", language="python")
        one = made["environment_id"]
        bomb = tools.raw("execute", environment_id=one, code=PROGRAMS["a fork bomb"][1], timeout_seconds=200)
        running = asyncio.create_task(bomb)
        await until_started(tools, one, "a fork bomb")
        started = time.monotonic()
        alive = await tools.call("execute", environment_id=one, language="shell", code="echo alive")
        assert (alive["stdout"], time.monotonic() - started < ANSWER_S) == ("alive\n", True)
        await tools.call("destroy_environment", environment_id=one)
        ended = await running
        assert ended.is_error and "was destroyed during the call" in ended.content[0].text
        server.assert_nothing_left()


async def test_the_omitted_part_of_a_long_output_can_be_read_in_the_guest(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        ran = await tools.call("execute", environment_id=one, code="for n in range(200000): print(n)")
        lost = ran["stdout_lost"]
        whole, offset = "".join(f"{n}\n" for n in range(200000)), lost["from"]
        while offset < lost["to"]:
            result = await tools.raw(
                "read_file", environment_id=one, path=ran["stdout_file"], offset=offset, limit=lost["to"] - offset
            )
            part = result.meta["waggle/part"]
            assert result.content[0].text[: part["bytes"]] == whole[offset : offset + part["bytes"]]
            offset += part["bytes"]
        assert json.loads(ran["stdout"].split("\n", 1)[0]) == 0
