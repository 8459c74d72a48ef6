# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests end in a machine as they end outside of one: in a chroot with the same image, as the same user."""

import os
import subprocess
import time
import xml.etree.ElementTree

import pytest

from server import ROOT, image
from unpacked import unpack

pytestmark = [pytest.mark.outside("compares with a chroot on this machine"), pytest.mark.timeout(3600)]

# The files that each run checks, in one machine; `./taskw e2e-python` checks the others as well.
QUICK = ["test_epoll", "test_fcntl", "test_mmap", "test_pty", "test_tempfile"]
OTHERS = [
    "test_asyncio",
    "test_multiprocessing_fork",
    "test_os",
    "test_posix",
    "test_shutil",
    "test_signal",
    "test_socket",
    "test_ssl",
    "test_subprocess",
    "test_threading",
]

# Tests that end differently in a machine, with the reason. One that no longer does must be removed.
KNOWN: dict[str, str] = {}

# Runs a file's tests without network access, and writes the results to a file. The tests of a file share a process.
TESTS = "cd /tmp && python3 -m test --timeout 600 --junit-xml /tmp/{name}.xml {name} </dev/null; echo ended with $?"
# Seconds for one file in an emulated machine.
TESTS_S = 1800

# A chroot with the file systems of a machine's sandbox. The shell stays as the first process, so that it reaps orphans.
OUTSIDE = """
set -e
cd "$0"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do mknod -m 666 dev/${device% *} c 1 ${device#* }; done
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for number in 0 1 2; do ln -s fd/$number dev/$(echo stdin stdout stderr | cut -d ' ' -f $((number + 1))); done
hostname outside
ip link set lo up
setsid --wait chroot --userspec=1000:1000 --groups=1000 . \
  /usr/bin/env -i HOME=/home/sandbox LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin USER=sandbox sh -c "$1" || true
cat tmp/*.xml
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The files of the image."""
    unpacked = unpack(ROOT / "target/images/suite", tmp_path_factory.mktemp("suite") / "bundle")
    (unpacked / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 outside\n")
    return unpacked


@pytest.fixture
def suite_server(serve):
    return serve(IMAGE_PYTHON=image("suite"), MAX_EXEC_TIMEOUT=f"{TESTS_S}s", DEFAULT_MEMORY_MB="1024").start()


def ends_outside(root, name):
    command = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
    arguments = ["sh", "-c", OUTSIDE, root, f"({TESTS.format(name=name)}) >&2"]
    ran = subprocess.run([*command, *arguments], capture_output=True, timeout=TESTS_S, check=True, env=os.environ | {"LANG": "C"})
    assert b"ended with" in ran.stderr, ran.stderr
    return ends(ran.stdout)


async def ends_inside(tools, made, name):
    one = made["environment_id"]
    code = TESTS.format(name=name)
    ran = await tools.call("execute", environment_id=one, code=code, language="shell", timeout_seconds=TESTS_S)
    assert "ended with" in ran["stdout"], ran
    read = await tools.raw("execute", environment_id=one, code=f"cat /tmp/{name}.xml", language="shell", output_bytes=524288)
    return ends(read.structured_content["stdout"].encode())


def ends(report):
    """The end of each test of a file: passed, skipped, failure or error."""
    cases = xml.etree.ElementTree.fromstring(report).iter("testcase")
    found = {}
    for case in cases:
        details = {child.tag for child in case} & {"skipped", "failure", "error"}
        found[case.get("name")] = min(details, default="passed")
    return found


def differences(outside, inside):
    """The tests that end differently, without the known ones; and the known ones that end the same way."""
    names = sorted(outside.keys() | inside.keys())
    pairs = {name: (outside.get(name, "missing"), inside.get(name, "missing")) for name in names}
    return {name: pair for name, pair in pairs.items() if (pair[0] != pair[1]) != (name in KNOWN)}


async def compare(server, root, names):
    async with server.client(timeout_s=TESTS_S) as tools, tools.environment("python") as made:
        for name in names:
            begun = time.monotonic()
            inside = await ends_inside(tools, made, name)
            print(f"{name}: {len(inside)} tests, {time.monotonic() - begun:.0f} s in the machine")
            outside = ends_outside(root, name)
            assert "passed" in outside.values(), f"{name} ran no test"
            assert differences(outside, inside) == {}, f"{name}: (outside, inside)"


async def test_five_files_of_python_tests_end_as_outside_of_a_machine(suite_server, root):
    await compare(suite_server, root, QUICK)


@pytest.mark.python
@pytest.mark.parametrize("name", OTHERS)
async def test_a_file_of_python_tests_ends_as_outside_of_a_machine(suite_server, root, name):
    await compare(suite_server, root, [name])
