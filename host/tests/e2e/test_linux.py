# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Programs meet the limits and the permissions that they have on any other Linux."""

import shutil
import struct

import pytest

from layouts import Layer
from nested import file_of_image
from repositories import add_layer
from server import ROOT, image

MADE_HERE = "makes an image in a folder of this machine"


async def output(tools, made, code, language="shell", **arguments):
    """The output of a program that must succeed."""
    ran = await tools.call("execute", environment_id=made["environment_id"], code=code, language=language, **arguments)
    assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
    return ran["stdout"]


@pytest.mark.outside(MADE_HERE)
async def test_programs_with_file_capabilities_run_without_them(serve, tmp_path):
    # Version 2 of the attribute: effective, with CAP_NET_RAW (13) permitted.
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    layer = Layer()
    layer.add("opt/busybox", content=file_of_image("foreign", "bin/busybox"), mode=0o4755, xattrs={"security.capability": capability}, parents=True)
    layout = tmp_path / "image"
    shutil.copytree(ROOT / "target/images/foreign", layout)
    add_layer(layout, layer.end())
    server = serve(IMAGE_SHELL=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        code = "/opt/busybox grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; /opt/busybox id -u"
        assert (await output(tools, made, code)).split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1", "1000"]


LIMITS = """
import ctypes, os, resource, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
print("files", soft, hard == min(max(memory // 1024, 65536), 1048576))
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(70_000)]
print("opened", len(held))
for fd in held: os.close(fd)
print("core", resource.getrlimit(resource.RLIMIT_CORE) == (0, resource.RLIM_INFINITY))

def setting(name): return int(open(f"/proc/sys/{name}").read())
print("watches", setting("fs/inotify/max_user_watches") == min(memory // 1024, 524288), setting("fs/inotify/max_user_instances"))
print("watchers", sum(libc.inotify_init() >= 0 for _ in range(1000)))
print("port", socket.create_server(("127.0.0.1", 80)).getsockname()[1])

child = subprocess.Popen(["sleep", "60"])
resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (100, 200))
print("child", resource.prlimit(child.pid, resource.RLIMIT_NOFILE))
child.kill()
try: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))
except PermissionError: print("first process refused")
"""

# Fills the shared memory of both kinds. The segments stay when the program has ended.
SHARED_MEMORY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
size, segments = 4 << 20, 0
while (segment := libc.shmget(0, size, 0o1600)) >= 0:
    ctypes.memset(libc.shmat(segment, None, 0), 1, size)
    segments += 1
print(segments, ctypes.get_errno())
with open("/dev/shm/hog", "wb") as file:
    try:
        while True: file.write(bytes(1 << 20))
    except OSError as error: print(error.strerror)
"""


async def test_limits_are_those_of_an_ordinary_linux(serve):
    server = serve(IMAGE_SHELL=image("python")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        assert (await output(tools, made, LIMITS, "python")).splitlines() == [
            "files 65536 True",
            "opened 70000",
            "core True",
            "watches True 1024",
            "watchers 1000",
            "port 80",
            "child (100, 200)",
            "first process refused",
        ]
        code = "mkdir crash; cd crash; ulimit -n; ulimit -n 100; ulimit -n; ulimit -c unlimited; (sh -c 'kill -SEGV $$'); ls; cat /proc/sys/kernel/core_pattern"
        ran = await tools.call("execute", environment_id=made["environment_id"], code=code)
        first, second, core, pattern = ran["stdout"].split()
        assert (first, second, core.split(".")[0], pattern) == ("65536", "100", "core", "core"), ran


async def test_shared_memory_outlives_its_command_within_a_limit(serve):
    server = serve(IMAGE_SHELL=image("python"), DEFAULT_MEMORY_MB="256").start()
    async with server.client() as tools, tools.environment("shell") as made:
        # `ipcmk` prints the id of the new segment.
        segment = (await output(tools, made, "ipcmk --shmem 4096")).split()[-1]
        assert (await output(tools, made, f"ipcs --shmems --id {segment} | grep -o ^bytes=[0-9]*")) == "bytes=4096\n"
        # All segments together get a quarter of the memory, which is less than 256 MiB.
        segments, error, full = (await output(tools, made, SHARED_MEMORY, "python")).split(maxsplit=2)
        assert (10 <= int(segments) <= 16, int(error), full.strip()) == (True, 28, "No space left on device"), (segments, error, full)
        # Both kinds of memory are full, and calls still work.
        assert await output(tools, made, "print('alive')", "python") == "alive\n"
        await tools.call("write_file", environment_id=made["environment_id"], path="note", content="hello")
        assert await tools.text("read_file", environment_id=made["environment_id"], path="note") == "hello"


async def test_a_running_program_can_be_replaced_and_tilde_is_the_home(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        code = "cp /bin/sleep tool; (./tool 60 >/dev/null 2>&1 &); until pgrep -x tool >/dev/null; do sleep 0.1; done"
        await output(tools, made, code)
        await tools.call("write_file", environment_id=one, path="~/tool", content="#!/bin/sh\necho new\n")
        assert await output(tools, made, "./tool; pgrep -cx tool; ls -d ~ tool '~' 2>/dev/null | cat") == "new\n1\n/home/sandbox\ntool\n"
        listed = await tools.call("list_files", environment_id=one, path="~")
        assert [entry["name"] for entry in listed["files"]] == ["tool"]
        await output(tools, made, "mkdir work")
        assert await output(tools, made, "pwd", working_directory="~/work") == "/home/sandbox/work\n"
        refused = await tools.refusal("execute", environment_id=one, code="true", working_directory="~/nowhere")
        assert "failed to enter the working directory /home/sandbox/nowhere: No such file or directory" in refused
