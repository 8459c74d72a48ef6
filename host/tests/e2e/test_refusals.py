# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Refused operations: the result says what was refused and which setting allows it."""

import asyncio
import base64
import struct
import time

import pytest

from server import image

# Seconds in which a short call must have ended while another call floods the agent with refused system calls.
PROMPT_S = 10

# The numbers of mount and clone for x86_64. Chromium makes the same call of clone when it looks for a sandbox.
CHROMIUM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
child = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
if child == 0: os._exit(0)
sys.exit(f"No usable sandbox! {os.strerror(ctypes.get_errno())}")
"""

FLOOD = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
end = time.monotonic() + 3
def unshare():
    while time.monotonic() < end: assert libc.unshare(0x10000000) == -1
threads = [threading.Thread(target=unshare) for _ in range(200)]
for thread in threads: thread.start()
print("flooding", flush=True)
for thread in threads: thread.join()
raise SystemExit(3)
"""

# Ends in the middle of refused system calls, in processes that are killed and in threads that get signals.
INTERRUPTED = """
import ctypes, os, signal, threading, time
libc = ctypes.CDLL(None)
for _ in range(30):
    child = os.fork()
    if child == 0:
        for _ in range(4): threading.Thread(target=lambda: [libc.unshare(0x10000000) for _ in range(10000)]).start()
        time.sleep(60)
    time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(200): libc.unshare(0x10000000)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def program_of_32_bits():
    """A static program for 32-bit x86: `mov $1, %eax; xor %ebx, %ebx; int $0x80`, which is exit(0)."""
    code, at = bytes.fromhex("b80100000031dbcd80"), 0x08048000
    headers = 52 + 32
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, at + headers, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, at, at, headers + len(code), headers + len(code), 5, 0x1000)
    return header + segment + code


async def run(tools, made, code, language="shell", **more):
    return await tools.call("execute", environment_id=made["environment_id"], code=code, language=language, **more)


@pytest.fixture
def suite_server(serve):
    return serve(IMAGE_SHELL=image("suite"), IMAGE_PYTHON=image("suite")).start()


@pytest.mark.outside("its image is not in the nested host")
async def test_a_refusal_names_the_system_calls_and_the_setting_that_allows_them(suite_server):
    async with suite_server.client() as tools, tools.environment("shell") as made:
        ran = await run(tools, made, "unshare --user true")
        assert ran["exit_code"] == 1 and "Operation not permitted" in ran["stderr"]
        assert "refused unshare during this call" in ran["hint"] and "WAGGLE_RELAX=filter," in ran["hint"]
        ran = await run(tools, made, "bwrap --ro-bind / / true")
        assert ran["exit_code"] == 1 and "refused clone" in ran["hint"] and "WAGGLE_RELAX=filter," in ran["hint"], ran
        ran = await run(tools, made, CHROMIUM, "python")
        assert (ran["exit_code"], ran["stderr"]) == (1, "No usable sandbox! Operation not permitted\n")
        assert "refused clone during this call" in ran["hint"] and "--no-sandbox of Chromium" in ran["hint"]
        # The counts belong to their call; a call that succeeds gets no hint.
        ran = await run(tools, made, "for i in 1 2 3; do unshare --user true; done; python3 -c 'raise SystemExit(7)'")
        assert ran["exit_code"] == 7 and "refused unshare (3 times) during" in ran["hint"]
        assert "hint" not in await run(tools, made, "unshare --user true; true")
        assert "hint" not in await run(tools, made, "exit 5")
        ran = await run(tools, made, "sudo -n id")
        assert ran["exit_code"] == 1 and "WAGGLE_RELAX=no-new-privileges" in ran["hint"], ran
        assert "install_packages with \"system\": true" in ran["hint"]
        ran = await run(tools, made, "su -c id 2>&1 </dev/null")
        assert ran["exit_code"] != 0 and "WAGGLE_RELAX=no-new-privileges" in ran["hint"], ran
        ran = await run(tools, made, "apt-get install --yes hello")
        assert ran["exit_code"] == 100 and "install_packages with \"system\": true" in ran["hint"], ran


async def test_a_32_bit_program_gets_one_clear_error(server):
    async with server.client() as tools, tools.environment("shell") as made:
        for name, machine in (("old", program_of_32_bits()), ("arm", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(100))):
            content = base64.b64encode(machine).decode()
            await tools.call("write_file", environment_id=made["environment_id"], path=name, content=content, encoding="base64")
        ran = await run(tools, made, "chmod +x old arm; exec bash -c './old; exit $?'")
        assert ran["exit_code"] in (126, 159)
        assert ("32-bit programs cannot run" if ran["exit_code"] == 159 else "64-bit programs for x86 Linux") in ran["hint"]
        ran = await run(tools, made, "bash -c ./arm")
        assert ran["exit_code"] == 126 and "64-bit programs for x86 Linux" in ran["hint"], ran


async def test_a_flood_of_refused_system_calls_delays_no_other_call(server):
    async with server.client() as tools, tools.environment("python") as made:
        flood = asyncio.create_task(run(tools, made, FLOOD, "python", timeout_seconds=120))
        await asyncio.sleep(1)
        start = time.monotonic()
        for number in range(3):
            ran = await run(tools, made, f"echo {number}")
            assert ran["stdout"] == f"{number}\n"
        took = time.monotonic() - start
        print(f"three calls during the flood took {took:.2f} s")
        assert not flood.done() and took < PROMPT_S
        ran = await flood
        assert ran["exit_code"] == 3 and "refused unshare (" in ran["hint"], ran
        assert "hint" not in await run(tools, made, INTERRUPTED, "python", timeout_seconds=120)
        # The agent still listens.
        ran = await run(tools, made, "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x10000000) + 2)", "python")
        assert ran["exit_code"] == 1 and "refused unshare during this call" in ran["hint"]
