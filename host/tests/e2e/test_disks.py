# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A full disk, and its effects on its own guest and on others."""

DISK_MIB = 64

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


async def run(tools, one, code):
    ran = await tools.call("execute", environment_id=one, code=code)
    assert ran["exit_code"] == 0, ran
    return ran["stdout"].strip()
