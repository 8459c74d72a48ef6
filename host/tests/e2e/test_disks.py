# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A full disk, and its effects on its own guest and on others."""

import json
import os
import subprocess
import time

import anyio
import pytest

from server import BINARY, CALL_S

DISK_MIB = 64
# Maximum time from the end of a machine until its disk's space is free.
FREED_S = 10

FILL = """
import errno, os
count = 0
try:
    while True:
        with open(f"fill-{count}", "wb") as file:
            # One file after the other, each synced, so that no free space is left.
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        count += 1
except OSError as error:
    print(errno.errorcode[error.errno], count)
"""
FREE = """
import glob, os
for name in glob.glob("fill-*"):
    os.remove(name)
print("freed")
"""


async def test_a_full_disk_affects_only_its_guest(serve):
    server = serve(DEFAULT_DISK_MB=str(DISK_MIB)).start()
    async with server.client() as tools, tools.environment("python") as full, tools.environment("python") as other:
        one, two = full["environment_id"], other["environment_id"]
        await tools.call("write_file", environment_id=one, path="kept", content="old")
        word, mib = (await run(tools, one, FILL)).split()
        assert word == "ENOSPC" and DISK_MIB // 2 < int(mib) < DISK_MIB

        # File calls fail, too, and the old content stays.
        result = await tools.raw("write_file", environment_id=one, path="kept", content="new" * (1 << 20))
        assert result.is_error and result.meta["waggle/error"]["code"] == "no_space", result
        assert "No space left on device" in result.content[0].text
        assert await tools.text("read_file", environment_id=one, path="kept") == "old"

        # Other environments, new environments and the host are not affected.
        await tools.call("write_file", environment_id=two, path="more", content="x" * (8 << 20))
        assert await run(tools, two, "import os; print(os.stat('more').st_size)") == str(8 << 20)
        async with tools.environment("python") as third:
            assert await run(tools, third["environment_id"], "print('fresh')") == "fresh"
        assert int(server.shell(f"du -sm {server.data}/machines").split()[0]) <= 2 * DISK_MIB
        assert server.status("/readyz")[0] == 200

        # The guest can free space again.
        assert await run(tools, one, FREE) == "freed"
        await tools.call("write_file", environment_id=one, path="kept", content="new")
        assert await run(tools, one, "print(open('kept').read())") == "new"


def grow(mib):
    """Code that writes a file of this size to the disk."""
    return f"""
import os
with open("grown", "wb") as file:
    for _ in range({mib}):
        file.write(b"x" * (1 << 20))
    file.flush()
    os.fsync(file.fileno())
print("grown")
"""


@pytest.mark.outside("mounts a file system for the server's data")
async def test_a_low_disk_of_the_host_refuses_new_environments_and_leaves_those_that_run(serve):
    server = serve(DEFAULT_DISK_MB="256", DISK_RESERVE_MB="120")
    server.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=700", "tmpfs", server.data], check=True)
    try:
        server.start()
        async with server.client() as tools, tools.environment("python") as kept:
            other, one = kept["environment_id"], (await tools.create("python"))["environment_id"]
            assert server.status("/readyz")[1]["checks"]["disk"] == "ok"
            free = os.statvfs(server.data).f_bavail * os.statvfs(server.data).f_frsize >> 20
            assert await run(tools, one, grow(free - 110)) == "grown"

            # New environments are refused, and neither the refusal nor /readyz shows a path.
            refused = await tools.raw("create_environment", language="python")
            assert refused.is_error and refused.meta["waggle/error"]["code"] == "host_disk_low", refused
            message = refused.content[0].text
            assert "a reserve of 120 MiB must remain free" in message and str(server.folder) not in message, message
            status, ready = server.status("/readyz")
            assert (status, ready["checks"]["disk"] != "ok") == (200, True), ready
            assert str(server.folder) not in json.dumps(ready)
            assert "a reserve of 120 MiB must remain free" in server.output()
            doctor = [BINARY, "doctor", "--no-boot", "--json"]
            ran = subprocess.run(doctor, env=server.variables(), capture_output=True, text=True, timeout=CALL_S, check=False)
            checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
            assert (ran.returncode, checks["data folder"]["state"]) == (1, "broken")
            assert "a reserve of 120 MiB" in checks["data folder"]["found"]
            assert "WAGGLE_DISK_RESERVE_MB" in checks["data folder"]["mend"]["debian"]

            # The reserve is there for the environments that run.
            assert await run(tools, other, grow(50)) == "grown"
            await tools.call("destroy_environment", environment_id=one)
            # The kernel frees a file's space shortly after the last process that has it open has ended.
            deadline = time.monotonic() + FREED_S
            while server.status("/readyz")[1]["checks"]["disk"] != "ok":
                assert time.monotonic() < deadline
                await anyio.sleep(0.1)
            async with tools.environment("python") as third:
                assert await run(tools, third["environment_id"], "print('fresh')") == "fresh"
        server.stop()
    finally:
        subprocess.run(["umount", "--lazy", server.data], check=True)


INODES = """
import errno, os, pathlib
os.makedirs("small", exist_ok=True)
count = 0
try:
    while True:
        os.close(os.open(f"small/{count}", os.O_CREAT | os.O_WRONLY))
        count += 1
except OSError as error:
    print(errno.errorcode[error.errno], count, os.statvfs(".").f_ffree)
"""
BYTES = """
import errno, os
try:
    with open("large", "wb") as file:
        while True: file.write(bytes(1 << 16))
except OSError as error:
    print(errno.errorcode[error.errno], os.statvfs(".").f_bavail)
"""


async def test_calls_work_without_a_free_inode_or_block_on_the_disk(serve):
    server = serve(DEFAULT_DISK_MB=str(DISK_MIB)).start()
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        await tools.call("write_file", environment_id=one, path="kept", content="old")
        word, count, free = (await run(tools, one, INODES)).split()
        # There is an inode for each 4 KiB, and the agent has none of its own.
        assert (word, free) == ("ENOSPC", "0") and int(count) > 0.95 * DISK_MIB * 256
        await calls_work(tools, one)
        result = await tools.raw("write_file", environment_id=one, path="new", content="x")
        assert result.is_error and result.meta["waggle/error"]["code"] == "no_space", result

        # One inode becomes free, and then all blocks are used.
        assert (await run(tools, one, "import os; os.remove('small/0')" + BYTES)).split() == ["ENOSPC", "0"]
        await calls_work(tools, one)
        await run(tools, one, "import os, shutil; shutil.rmtree('small'); os.remove('large')")
        await tools.call("write_file", environment_id=one, path="new", content="new")
        assert await tools.text("read_file", environment_id=one, path="new") == "new"


# The space of the input cannot be used for anything else.
STDIN = """
import errno, os, sys
print(len(sys.stdin.read()))
def attempt(action):
    try: print(action())
    except OSError as error: print(errno.errorcode[error.errno])
attempt(lambda: os.write(0, b"x"))
attempt(lambda: os.ftruncate(0, 1 << 20))
attempt(lambda: os.open("/proc/self/fd/0", os.O_RDWR))
"""


async def calls_work(tools, one):
    """Checks every kind of call that needs no space of the user."""
    assert await run(tools, one, "print('code')") == "code"
    for size in [1, 500_000]:
        ran = await tools.call("execute", environment_id=one, code=STDIN, stdin="x" * size)
        assert (ran["exit_code"], ran["stdout"].splitlines()) == (0, [str(size), "EBADF", "EINVAL", "EACCES"]), ran
    assert await tools.text("read_file", environment_id=one, path="kept") == "old"
    listed = await tools.call("list_files", environment_id=one, path="/etc")
    assert "passwd" in [file["name"] for file in listed["files"]]
    # The end of a long output is kept, and a background process goes on.
    ran = await tools.call("execute", environment_id=one, code="seq 300000; sleep 100 & echo $! >&2", language="shell")
    assert ran["exit_code"] == 0 and ran["stdout"].endswith("300000\n"), ran["stdout"][-100:]
    ran = await tools.call("execute", environment_id=one, code="pkill sleep", language="shell")
    assert ran["exit_code"] == 0, ran
    # A stdin that needs space of the user is an error, and the environment stays usable.
    result = await tools.raw("execute", environment_id=one, code="cat", language="shell", stdin="x" * 2_000_000)
    assert result.is_error and result.meta["waggle/error"]["code"] == "no_space", result


async def run(tools, one, code):
    # An emulated machine takes long to create and delete the files.
    ran = await tools.call("execute", environment_id=one, code=code, timeout_seconds=150)
    assert ran["exit_code"] == 0, ran
    return ran["stdout"].strip()
