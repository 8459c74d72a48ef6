# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Every unexpected end of a machine's processes is detected at once, reported, and cleaned up."""

import os
import re
import signal
import time

import pytest

from test_access import ADA, BOB, tokens_file
from test_recovery import becomes

DEEP_TREE_LEVELS = 20_000
STARTS_MAX = 10

# Detection takes at most a second; the rest is for the clean-up before the report, and for the test's query.
NOTICED_S = 5


@pytest.mark.parametrize("which", ["machines", "runners"])
@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGKILL, "signal: 9"), (signal.SIGSTOP, "was stopped by a signal")], ids=["killed", "stopped"]
)
async def test_killed_and_stopped_processes_are_told_apart(server, which, number, told):
    async with server.client() as tools:
        one = (await tools.call("create_environment", language="shell"))["environment_id"]
        server.signal(getattr(server, which)(), number)
        started = time.monotonic()
        assert await becomes(tools, one, "error")
        assert time.monotonic() - started < NOTICED_S
        assert told in server.output()
        await tools.call("destroy_environment", environment_id=one)
        server.assert_nothing_left(within_s=1)


async def test_two_servers_do_not_touch_each_others_machines(serve):
    first, second = serve().start(), serve().start()
    async with first.client() as ours, second.client() as theirs:
        await ours.call("create_environment", language="shell")
        one = (await theirs.call("create_environment", language="shell"))["environment_id"]
        first.stop()
        first.assert_nothing_left()
        ran = await theirs.call("execute", environment_id=one, code="echo still here")
        assert ran["stdout"] == "still here\n"
        await theirs.call("destroy_environment", environment_id=one)


@pytest.mark.outside("shares the server's data folder")
async def test_two_servers_share_a_data_folder(serve):
    first = serve().start()
    second = serve(DATA_DIR=str(first.data)).start()
    async with second.client() as theirs:
        one = (await theirs.call("create_environment", language="shell"))["environment_id"]
        async with first.client() as ours:
            await ours.call("create_environment", language="shell")
            first.kill()
        # The start removes what the killed server has left, and nothing else.
        first.start()
        async with first.client() as ours:
            assert (await ours.call("list_environments"))["count"] == 0
            two = (await ours.call("create_environment", language="shell"))["environment_id"]
            folders = {folder.rpartition("/")[2] for folder in first.machine_folders()}
            assert folders == {one, two}
            for tools, made in ((theirs, one), (ours, two)):
                assert (await tools.call("execute", environment_id=made, code="echo still here"))["stdout"] == "still here\n"
        second.stop()
        folders = {folder.rpartition("/")[2] for folder in first.machine_folders()}
        assert folders == {two}
        async with first.client() as ours:
            assert (await ours.call("execute", environment_id=two, code="echo here"))["stdout"] == "here\n"
    first.stop()
    assert first.leftovers() == []


@pytest.mark.outside("reads the log of a server that has ended")
async def test_failed_starts_of_one_caller_write_few_lines_and_hide_no_other(serve, tmp_path):
    (tmp_path / "index.json").write_text("{}")
    tokens = tokens_file(tmp_path)
    server = serve(IMAGE_SHELL=f"oci:{tmp_path}", AUTH_TOKENS_FILE=str(tokens)).start("/healthz")
    before, started = len(server.output()), time.monotonic()
    async with server.client(ADA) as ada, server.client(BOB) as bob:
        for _ in range(100):
            assert await ada.fault("create_environment", language="shell") == "start_failed"
        assert await bob.fault("create_environment", language="shell") == "start_failed"
    server.stop()
    told = server.output()[before:]
    lines = told.count("a tool failed")
    # One more line may be written every 30 s.
    assert 21 <= lines <= 21 + (time.monotonic() - started) // 30, told
    # A later line states those that were left out before it, and the last line the rest.
    left_out = sum(map(int, re.findall(r"(?:of_callers|left_out)=(\d+)", told)))
    assert lines + left_out == 101, told
    assert len(told) < 20_000


@pytest.mark.outside("makes folders in the server's data folder")
async def test_a_deep_tree_in_a_run_folder_stops_no_server(serve):
    server = serve().start()
    async with server.client() as tools:
        one = (await tools.call("create_environment", language="shell"))["environment_id"]
        make_deep_tree(run_folder(server, one))
        await tools.call("destroy_environment", environment_id=one)
        assert not run_folder(server, one)
        two = (await tools.call("create_environment", language="shell"))["environment_id"]
        make_deep_tree(run_folder(server, two))
        server.kill()
    server.start()
    assert not run_folder(server, two)
    # Each start continues to remove the folders that took too long before.
    for _ in range(STARTS_MAX):
        if not set_aside(server):
            break
        server.stop()
        server.start()
    assert not set_aside(server)


def run_folder(server, environment):
    return next((server.data / "machines").glob(f"*/{environment}"), None)


def set_aside(server):
    folder = server.data / "machines/.set-aside"
    return os.listdir(folder) if folder.exists() else []


def make_deep_tree(folder):
    """Makes a tree too deep for a recursive removal's stack and for a process's descriptors."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(DEEP_TREE_LEVELS):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


@pytest.mark.nested
async def test_a_machine_that_runs_out_of_memory_is_reported(server):
    group = "/sys/fs/cgroup/waggle"
    server.shell(f"echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir {group}; echo 200M >{group}/memory.max")
    server.shell(f"echo {server.process.pid} >{group}/cgroup.procs")
    async with server.client() as tools:
        one = (await tools.call("create_environment", language="python"))["environment_id"]
        code = "hog = bytearray(400 << 20); print(len(hog))"
        assert await tools.fault("execute", environment_id=one, code=code) == "environment_not_running"
        assert await becomes(tools, one, "error")
        assert "ran out of memory" in server.output()
        await tools.call("destroy_environment", environment_id=one)
        server.assert_nothing_left(within_s=1)


@pytest.mark.nested
@pytest.mark.parametrize(
    ("prepare", "undo", "settings", "told"),
    [
        ("chmod 0 /dev/kvm; chown 0 /dev/kvm", "chown 1000 /dev/kvm; chmod 600 /dev/kvm", {}, "Permission denied"),
        ("", "", {"FIRMWARE": "/nowhere"}, "/nowhere, which WAGGLE_FIRMWARE names"),
        ("head -c 1000000 /waggle/libkrunfw.so.5.* >/tmp/cut", "rm /tmp/cut", {"FIRMWARE": "/tmp/cut"}, "failed to use /tmp/cut"),
        ("cp /lib/*/libc.so.6 /tmp/other", "rm /tmp/other", {"FIRMWARE": "/tmp/other"}, "krunfw_get_version"),
    ],
    ids=["no permission", "no firmware", "truncated", "another library"],
)
def test_missing_requirements_of_libkrun_stop_the_start(serve, prepare, undo, settings, told):
    server = serve(**settings)
    server.shell(prepare)
    try:
        server.launch()
        assert server.process.wait(30) != 0
        server.process = None
        assert told in server.output(), server.output()
    finally:
        server.shell(undo)
