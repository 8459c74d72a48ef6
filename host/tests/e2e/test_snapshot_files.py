# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The files of saved environments, after a change of the host, of the program, or of the files themselves."""

import hashlib
import json
import pathlib
import random

import pytest

BLOCK_BYTES = 64 << 10
ROUNDS = 200


def machine_folder(server):
    [folder] = (pathlib.Path(server.data) / "saved").glob("*/machine")
    return folder


def describe(folder, change):
    """Changes the description of a machine, and makes its digest right again."""
    path = folder / "machine.json"
    description = json.loads(path.read_text().splitlines()[0])
    change(description)
    text = json.dumps(description)
    path.write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


def measure(content):
    digest = hashlib.sha256()
    for offset in range(0, len(content), BLOCK_BYTES):
        block = content[offset : offset + BLOCK_BYTES]
        if any(block):
            digest.update(offset.to_bytes(8, "little") + block)
    return {"bytes": len(content), "sha256": digest.hexdigest()}


async def save(tools, code="echo kept >note"):
    one = (await tools.create("shell"))["environment_id"]
    await tools.call("execute", environment_id=one, code=code)
    await tools.call("destroy_environment", environment_id=one, save_as="work")


async def test_only_the_disk_comes_back_after_a_reboot_or_with_another_program(serve):
    server = serve().start()
    async with server.client() as tools:
        await save(tools, "echo kept >note; sleep 1000 >/dev/null 2>&1 &")
        folder = machine_folder(server)
        origin = json.loads((folder / "machine.json").read_text().splitlines()[0])["origin"]
        # The unit tests have the other parts of the origin.
        for part in ["boot", "processor", None]:
            other = origin | {part: "another"} if part else origin
            describe(folder, lambda description: description.update(origin=other))
            made = await tools.call("create_environment", saved="work")
            one = made["environment_id"]
            assert made["memory"] is (part is None), (part, made)
            ran = await tools.call("execute", environment_id=one, code="cat note; pgrep -x sleep | wc -l")
            assert ran["stdout"] == f"kept\n{int(part is None)}\n", (part, ran)
            await tools.call("destroy_environment", environment_id=one)


async def test_a_changed_saved_environment_is_refused_and_its_files_are_kept(serve):
    server = serve().start()
    async with server.client() as tools:
        await save(tools)
        folder = machine_folder(server)
        with open(folder / "memory", "r+b") as file:
            file.seek(20 << 20)
            byte = file.read(1)
            file.seek(20 << 20)
            file.write(bytes([byte[0] ^ 1]))
        refused = await tools.refusal("create_environment", saved="work")
        assert "damaged" in refused, refused
        assert folder.is_dir()
        assert "is not what was saved" in server.output()
        # The name is free again, and all else works.
        await save(tools)
        made = await tools.call("create_environment", saved="work")
        assert made["memory"] is True, made
        await tools.call("destroy_environment", environment_id=made["environment_id"])
        server.assert_nothing_left(within_s=5)


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_hostile_state_of_devices_harms_only_its_machine(serve):
    """A machine that its guest has taken over can save any state. Only its own VMM decodes it."""
    server = serve(BOOT_TIMEOUT="20s").start()
    chance = random.Random(21)
    outcomes = {}
    async with server.client() as tools:
        await save(tools)
        neighbour = (await tools.create("shell"))["environment_id"]
        folder = machine_folder(server)
        whole = (folder / "devices").read_bytes()
        for number in range(ROUNDS):
            state = bytearray(whole)
            if number % 5 == 4:
                del state[chance.randrange(1, len(state)) :]
            else:
                for _ in range(chance.choice([1, 1, 4, 64])):
                    state[chance.randrange(len(state))] = chance.randrange(256)
            (folder / "devices").write_bytes(state)
            describe(folder, lambda description: description["memory"].update(devices=measure(bytes(state))))
            result = await tools.raw("create_environment", saved="work")
            if result.is_error:
                outcome = "refused"
            else:
                made = json.loads(result.content[0].text)
                outcome = "continued" if made["memory"] else "booted"
                await tools.raw("destroy_environment", environment_id=made["environment_id"])
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert server.is_running
            ran = await tools.call("execute", environment_id=neighbour, code="echo here")
            assert ran["stdout"] == "here\n", ran
        await tools.call("destroy_environment", environment_id=neighbour)
        server.assert_nothing_left(within_s=10)
        assert {"continued", "booted"} <= set(outcomes), outcomes
        (folder / "devices").write_bytes(whole)
        describe(folder, lambda description: description["memory"].update(devices=measure(whole)))
        assert (await tools.call("create_environment", saved="work"))["memory"] is True
    print(outcomes)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_killed_server_loses_none_of_its_saved_and_suspended_environments(serve):
    settings = {"MAX_ENVIRONMENTS": "20", "DEFAULT_MEMORY_MB": "192", "IDLE": "suspend", "REAPER_INTERVAL": "1s"}
    server = serve(**settings).start()
    async with server.client() as tools:
        for number in range(5):
            one = (await tools.create("shell"))["environment_id"]
            await tools.call("execute", environment_id=one, code=f"echo {number} >note")
            await tools.call("destroy_environment", environment_id=one, save_as=f"saved-{number}")
        suspended = []
        for number in range(5):
            one = (await tools.create("shell", timeout_minutes=0.035))["environment_id"]
            await tools.call("execute", environment_id=one, code=f"echo {number} >note")
            suspended.append(one)
        running = [(await tools.create("shell"))["environment_id"] for _ in range(10)]
        while True:
            listed = (await tools.call("list_environments"))["environments"]
            if sum(entry["status"] == "suspended" for entry in listed) == 5:
                break
    server.kill()
    server.start()
    async with server.client() as tools:
        for number, one in enumerate(suspended):
            ran = await tools.call("execute", environment_id=one, code="cat note")
            assert ran["stdout"] == f"{number}\n", ran
        for one in suspended:
            await tools.call("destroy_environment", environment_id=one)
        for number in range(5):
            made = await tools.call("create_environment", saved=f"saved-{number}")
            assert made["memory"] is True
            ran = await tools.call("execute", environment_id=made["environment_id"], code="cat note")
            assert ran["stdout"] == f"{number}\n", ran
            await tools.call("destroy_environment", environment_id=made["environment_id"])
        for one in running:
            lost = await tools.refusal("execute", environment_id=one, code="true")
            assert "lost" in lost or "ended" in lost, lost
