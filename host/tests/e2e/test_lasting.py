# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Forks, saved and suspended environments, with their memory and running programs, in real machines."""

import asyncio
import time

# Maximum time in which an idle environment is suspended, emulated on a busy machine.
SUSPEND_S = 60
# Maximum time in which the server makes a template in the background.
TEMPLATE_S = 60
# An idle timeout of about 2 s, in minutes.
SHORT = 0.035

# A program that keeps a random number in its memory, and shows it with a count that grows.
PROGRAM = """
import os, pathlib, random, time
secret, count = random.random(), 0
while True:
    count += 1
    new = pathlib.Path("state.new")
    new.write_text(f"{os.getpid()} {secret} {count}")
    new.rename("state")
    time.sleep(0.05)
"""
START = f"cat >program.py <<'END'\n{PROGRAM}\nEND\nsetsid python3 program.py >/dev/null 2>&1 &\nwhile [ ! -e state ]; do sleep 0.1; done"
IDENTITY = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid"


async def run(tools, one, code, language="shell", **arguments):
    ran = await tools.call("execute", environment_id=one, language=language, code=code, timeout_seconds=60, **arguments)
    assert ran["exit_code"] == 0, ran
    return ran


async def state(tools, one):
    """The program's process id and secret, and its count."""
    *program, count = (await run(tools, one, "cat state"))["stdout"].split()
    return program, int(count)


async def goes_on(tools, one):
    """Asserts that the program runs, and returns its process id and secret."""
    program, before = await state(tools, one)
    for _ in range(100):
        await asyncio.sleep(0.1)
        again, count = await state(tools, one)
        assert again == program
        if count > before:
            return program
    raise AssertionError("the program does not run")


async def status(tools, one):
    listed = (await tools.call("list_environments"))["environments"]
    return next((entry["status"] for entry in listed if entry["environment_id"] == one), None)


async def becomes(tools, one, wanted, within_s=SUSPEND_S):
    deadline = time.monotonic() + within_s
    while (found := await status(tools, one)) != wanted:
        assert time.monotonic() < deadline, f"{found} instead of {wanted}"
        await asyncio.sleep(0.1)


async def test_forks_have_the_programs_of_their_source_and_identities_of_their_own(server):
    async with server.client() as tools:
        source = (await tools.create("python"))["environment_id"]
        await run(tools, source, START)
        program = await goes_on(tools, source)
        busy = asyncio.create_task(run(tools, source, "touch busy; while [ ! -e end ]; do sleep 0.1; done"))
        while not (await run(tools, source, "ls"))["stdout"].count("busy"):
            await asyncio.sleep(0.1)
        assert await tools.fault("create_environment", fork_of=source) == "calls_running"
        waits = asyncio.create_task(tools.call("create_environment", fork_of=source, wait=True))
        await asyncio.sleep(0.5)
        await run(tools, source, "touch end")
        forks = [await waits, *await asyncio.gather(*(tools.call("create_environment", fork_of=source) for _ in range(2)))]
        await busy
        assert all(fork["memory"] is True and fork["runtime"] == "python" for fork in forks), forks
        every = [source] + [fork["environment_id"] for fork in forks]
        seen = []
        for one in every:
            assert await goes_on(tools, one) == program
            await run(tools, one, f"echo {one} >own")
            seen.append((await run(tools, one, IDENTITY))["stdout"].split())
            drawn = await run(tools, one, "import os, random; print(random.random(), os.urandom(8).hex())", "python")
            seen[-1] += drawn["stdout"].split()
        assert all(len(set(values)) == len(every) for values in zip(*seen)), seen
        for one in every:
            assert (await run(tools, one, "cat own"))["stdout"] == f"{one}\n"
        # A fork does not need its source, and can be forked itself.
        await tools.call("destroy_environment", environment_id=source)
        again = await tools.call("create_environment", fork_of=every[1])
        assert await goes_on(tools, again["environment_id"]) == program
        for one in [*every[1:], again["environment_id"]]:
            await tools.call("destroy_environment", environment_id=one)
        server.assert_nothing_left()


async def test_a_saved_environment_comes_back_after_a_restart(serve):
    server = serve().start()
    async with server.client() as tools:
        one = (await tools.create("python", environment={"COLOUR": "red"}))["environment_id"]
        await run(tools, one, START)
        program = await goes_on(tools, one)
        saved = await tools.call("destroy_environment", environment_id=one, save_as="work")
        assert saved["message"] == f'Environment {one} has been saved as "work" and destroyed', saved
        server.assert_nothing_left()
    server.stop()
    server.start()
    async with server.client() as tools:
        [entry] = (await tools.call("list_environments"))["saved"]
        assert (entry["name"], entry["runtime"]) == ("work", "python") and entry["size_bytes"] > 0, entry
        both = await asyncio.gather(*(tools.call("create_environment", saved="work") for _ in range(2)))
        for made in both:
            assert made["memory"] is True, made
            assert await goes_on(tools, made["environment_id"]) == program
            assert (await run(tools, made["environment_id"], "echo $COLOUR"))["stdout"] == "red\n"
        await run(tools, both[0]["environment_id"], "echo second >state.second")
        await tools.call("destroy_environment", environment_id=both[0]["environment_id"], save_as="work")
        await tools.call("destroy_environment", environment_id=both[1]["environment_id"])
        made = await tools.call("create_environment", saved="work")
        await run(tools, made["environment_id"], "cat state.second")
        await tools.call("destroy_environment", saved="work")
        assert await tools.fault("create_environment", saved="work") == "saved_not_found"
        assert await goes_on(tools, made["environment_id"]) == program


async def test_an_idle_environment_is_suspended_and_comes_back_at_a_call(serve):
    server = serve(IDLE="suspend", REAPER_INTERVAL="1s", MAX_ENVIRONMENTS="1").start()
    async with server.client() as tools:
        one = (await tools.create("python", timeout_minutes=SHORT))["environment_id"]
        await run(tools, one, START)
        program = await goes_on(tools, one)
        await becomes(tools, one, "suspended")
        # A template may still be in the making.
        server.assert_nothing_left(within_s=TEMPLATE_S)
        assert await tools.fault("create_environment", language="shell") == "capacity_reached"
        ran = await asyncio.gather(*(run(tools, one, "cat state") for _ in range(4)))
        assert [result["memory"] for result in ran if "memory" in result] == [True], ran
        assert len(server.machines()) == 1
        assert await goes_on(tools, one) == program
        # The clock of the machine is right.
        assert abs(float((await run(tools, one, "date +%s"))["stdout"]) - time.time()) < 5
        await tools.call("destroy_environment", environment_id=one)


async def test_a_stopped_server_suspends_and_the_next_one_brings_back(serve):
    server = serve(ON_STOP="suspend").start()
    async with server.client() as tools:
        ones = [(await tools.create("python"))["environment_id"] for _ in range(2)]
        for one in ones:
            await run(tools, one, START)
        programs = [await goes_on(tools, one) for one in ones]
        before = (await tools.call("list_environments"))["environments"]
        deadline = time.monotonic() + TEMPLATE_S
        while len(server.machines()) > 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
    server.stop()
    server.assert_nothing_left()
    server.start()
    async with server.client() as tools:
        after = (await tools.call("list_environments"))["environments"]
        assert [entry | {"status": "running"} for entry in after] == before
        assert [entry["status"] for entry in after] == ["suspended"] * 2
        assert await goes_on(tools, ones[0]) == programs[0]
        assert [await status(tools, one) for one in ones] == ["running", "suspended"]
        server.kill()
    # What was suspended is whole, and what ran is lost.
    server.start()
    async with server.client() as tools:
        lost = await tools.refusal("execute", environment_id=ones[0], code="1")
        assert "was lost when the server ended unexpectedly" in lost
        assert await goes_on(tools, ones[1]) == programs[1]
        assert await tools.fault("execute", environment_id=ones[0], code="1") == "environment_destroyed"
        await tools.call("destroy_environment", environment_id=ones[1])
    server.settings["ON_STOP"] = "destroy"
