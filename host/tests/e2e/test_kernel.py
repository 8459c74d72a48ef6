# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The kernel of QEMU's guests: from the firmware, or the operator's. Unusable ones stop the start and say what is right."""

import json
import subprocess

import pytest

from server import BINARY, CALL_S, ROOT
from test_start import refused

pytestmark = pytest.mark.outside("libkrun takes the kernel from the firmware itself")

LIBRARY = next((ROOT / "target/firmware").glob("libkrunfw.so.5.*"), None)
# A library with the interface of libkrunfw.
VERSION = "int krunfw_get_version(void) { return %d; }"
NO_KERNEL = "char *krunfw_get_kernel(unsigned long *a, unsigned long *e, unsigned long *n) { *n = 0; return 0; }"
# A text that only a kernel with initramfs support contains.
INITRAMFS = b"no cpio magic"
RIGHT_KERNEL = "must name a vmlinux"
RIGHT_FIRMWARE = "./taskw firmware"


def compiled(source, place):
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", place], input=source.encode(), check=True)


def without_initramfs(place):
    content = LIBRARY.read_bytes()
    assert INITRAMFS in content
    place.write_bytes(content.replace(INITRAMFS, INITRAMFS.upper()))


# Each makes a library. The words are in the error of the start and in the doctor's check.
FIRMWARE = {
    "absent": (lambda place: None, "missing", ["libkrunfw.so.5 not found at", "WAGGLE_KERNEL"]),
    "empty": (lambda place: place.write_bytes(b""), "broken", ["too short"]),
    "other ABI": (lambda place: compiled(VERSION % 4, place), "broken", ["interface version is 4; must be 5"]),
    "no function": (lambda place: compiled(VERSION % 5, place), "broken", ["contains no kernel", RIGHT_FIRMWARE]),
    "no kernel": (lambda place: compiled(VERSION % 5 + NO_KERNEL, place), "broken", ["contains no kernel", RIGHT_FIRMWARE]),
    "truncated": (
        lambda place: place.write_bytes(LIBRARY.read_bytes()[:9_000_000]), "broken", ["may be truncated", RIGHT_FIRMWARE]
    ),
    "no initramfs": (without_initramfs, "broken", ["no support for an initramfs", RIGHT_FIRMWARE, "WAGGLE_KERNEL"]),
}


@pytest.mark.parametrize("wrong", FIRMWARE)
def test_firmware_without_a_usable_kernel_stops_the_start_and_says_what_is_right(serve, tmp_path, wrong):
    make, state, words = FIRMWARE[wrong]
    make(tmp_path / "libkrunfw.so.5")
    server = serve(FIRMWARE=str(tmp_path), BACKEND="qemu")
    output = refused(server)
    report = doctor(server)
    check = report["guest kernel"]
    assert (check["state"], check["needed"]) == (state, True)
    for word in [*words, str(tmp_path)]:
        assert word in output and word in check["found"]
    # libkrun can use a kernel without initramfs support.
    assert report["libkrunfw"]["state"] == ("ok" if wrong == "no initramfs" else state)
    assert list(server.data.glob("firmware/vmlinux-*")) == []


# Each makes what WAGGLE_KERNEL names.
KERNELS = {
    "nothing": (lambda place: None, "missing", ["No such file"]),
    "folder": (lambda place: place.mkdir(), "broken", ["names the folder"]),
    "bzImage": (lambda place: place.write_bytes(bytes(0x202) + b"HdrS" + bytes(4000)), "broken", ["is a bzImage"]),
    "truncated": (lambda place: place.write_bytes(vmlinux()[:-1]), "broken", ["is truncated"]),
    "program": (lambda place: place.write_bytes(b"#!/bin/sh"), "broken", ["not an ELF file for x86-64"]),
}


def vmlinux():
    return subprocess.run([BINARY, "runner", "kernel", LIBRARY], capture_output=True, check=True).stdout


@pytest.mark.parametrize("wrong", KERNELS)
def test_a_kernel_that_qemu_cannot_boot_stops_the_start_and_says_what_is_right(serve, tmp_path, wrong):
    make, state, words = KERNELS[wrong]
    make(tmp_path / "kernel")
    server = serve(KERNEL=str(tmp_path / "kernel"), BACKEND="qemu")
    output = refused(server)
    check = doctor(server)["guest kernel"]
    assert (check["state"], check["needed"]) == (state, True)
    for word in [*words, RIGHT_KERNEL, str(tmp_path / "kernel")]:
        assert word in output and word in check["found"]


async def test_an_operators_kernel_needs_no_firmware_and_takes_arguments(serve, tmp_path):
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    server = serve(KERNEL=str(tmp_path / "vmlinux"), FIRMWARE=str(tmp_path), KERNEL_ARGS="noapictimer waggle.test=1")
    assert not doctor(server)["libkrunfw"]["needed"]
    async with server.start().client() as tools, tools.environment("shell") as made:
        code = "cat /proc/cmdline /proc/sys/kernel/pid_max; ls /modules /lib/modules 2>&1 | grep -c 'No such'"
        ran = await tools.call("execute", environment_id=made["environment_id"], code=code)
    line, pids, absent = ran["stdout"].splitlines()
    assert " noapictimer waggle.test=1" in line and line.startswith("console=hvc0")
    # More than the most processes of a call.
    assert int(pids) == 32768
    assert absent == "2"
    assert not (server.data / "firmware").exists()


async def test_a_changed_or_removed_kernel_is_made_again_before_a_machine_starts(serve):
    server = serve().start()
    [kernel] = server.data.glob("firmware/vmlinux-*")
    content = kernel.read_bytes()
    assert kernel.stat().st_mode & 0o777 == 0o600 and kernel.parent.stat().st_mode & 0o777 == 0o700
    async with server.client() as tools:
        for change in (lambda: kernel.write_bytes(b"\0" * len(content)), kernel.unlink):
            change()
            async with tools.environment("shell") as made:
                assert kernel.read_bytes() == content
                ran = await tools.call("execute", environment_id=made["environment_id"], code="echo runs")
                assert ran["stdout"] == "runs\n"
    assert "a file was changed and is replaced" in server.output()


def doctor(server):
    command = [BINARY, "doctor", "--json", "--no-boot"]
    ran = subprocess.run(command, env=server.variables(), capture_output=True, timeout=CALL_S, check=False)
    return {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
