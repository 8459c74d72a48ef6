# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Each machine has random numbers, ids and a name of its own, which its users cannot change."""

import json
import os
import re
import shutil
import tarfile

import pytest

from layouts import Layer
from repositories import add_layer, reconfigure, small_image
from server import ROOT, image

MADE_HERE = "makes an image in a folder of this machine"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

# Prints everything that must differ between two machines.
SHOWN = """
import json, os, socket, uuid
def text(path): return open(path).read()
print(json.dumps({
    "boot_id": text("/proc/sys/kernel/random/boot_id"),
    "machine_id": text("/etc/machine-id"),
    "host_name": text("/proc/sys/kernel/hostname"),
    "getrandom": os.getrandom(16).hex(),
    "urandom": open("/dev/urandom", "rb").read(16).hex(),
    "random": open("/dev/random", "rb").read(16).hex(),
    "uuid": text("/proc/sys/kernel/random/uuid"),
    "uuid4": str(uuid.uuid4()),
    "hash": hash("seed"),
}))
"""

# Tries to change the boot id or to uncover the kernel's own, as root.
ATTACK = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
ID = "/proc/sys/kernel/random/boot_id"
def attempt(name, action):
    try: action()
    except OSError as error: print(name, error.strerror)
    else: print(name, "done")
def syscall(number, *arguments):
    if libc.syscall(number, *arguments) == -1: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
attempt("write", lambda: open(ID, "w"))
attempt("chmod", lambda: os.chmod(ID, 0o666))
attempt("remove", lambda: os.remove(ID))
attempt("umount", lambda: syscall(166, ID.encode(), 2))
attempt("mount", lambda: syscall(165, b"/etc/passwd", ID.encode(), None, 4096, None))
attempt("mount proc", lambda: syscall(165, b"proc", b"/mnt", b"proc", 0, None))
attempt("host name", lambda: syscall(170, b"mine", 4))
attempt("link", lambda: os.link(ID, "/etc/id"))
print([name for name in os.listdir("/dev") if "id" in name])
mounts = [line.split() for line in open("/proc/self/mountinfo")]
print(len([1 for mount in mounts if mount[4] == ID and mount[5].startswith("ro,")]), "read-only mount")
"""


class Machine:
    """One environment, in which code runs as the sandbox user or, by the operator's install command, as root."""

    SETTINGS = {
        "IMAGE_SHELL": image("python"),
        "RUNTIME_SHELL_INSTALL_COMMAND": "/usr/bin/python3 /home/sandbox/as-root.py",
    }

    def __init__(self, tools, made):
        self.tools = tools
        self.id = made["environment_id"]

    async def run(self, code):
        ran = await self.tools.call("execute", environment_id=self.id, code=code, language="python")
        assert ran["exit_code"] == 0, ran
        return ran["stdout"]

    async def run_as_root(self, code):
        await self.tools.call("write_file", environment_id=self.id, path="as-root.py", content=code)
        ran = await self.tools.call("install_packages", environment_id=self.id, packages="none")
        assert ran["exit_code"] == 0, ran
        return ran["stdout"]

    async def shown(self):
        """What the sandbox user and root see; what does not change from call to call is equal for both."""
        user, root = json.loads(await self.run(SHOWN)), json.loads(await self.run_as_root(SHOWN))
        fixed = ["boot_id", "machine_id", "host_name"]
        assert [user[name] for name in fixed] == [root[name] for name in fixed]
        # Files are read by the agent's own worker.
        path = "/proc/sys/kernel/random/boot_id"
        assert await self.tools.text("read_file", environment_id=self.id, path=path) == user["boot_id"]
        assert re.fullmatch(UUID + "\n", user["boot_id"])
        assert re.fullmatch("[0-9a-f]{32}\n", user["machine_id"])
        name = f"env-{self.id[:8]}"
        assert user["host_name"] == name + "\n"
        hosts = await self.tools.text("read_file", environment_id=self.id, path="/etc/hosts")
        assert hosts.splitlines()[-1] == f"127.0.0.1 {name}"
        return [user, root]


async def test_each_machine_has_random_numbers_ids_and_a_name_that_root_cannot_change(serve):
    server = serve(**Machine.SETTINGS).start()
    async with server.client() as tools, tools.environment("shell") as one, tools.environment("shell") as other:
        one, other = Machine(tools, one), Machine(tools, other)
        lines = (await other.run_as_root(ATTACK)).splitlines()
        # No attempt succeeds, and no file but the mount leads to the id.
        assert [line for line in lines if line.endswith("done")] == [] and len(lines) == 10, lines
        assert lines[-2:] == ["[]", "1 read-only mount"]
        # Of each machine, what the user and what root sees.
        (first, root), (second, other_root) = await one.shown(), await other.shown()
        for name in first:
            assert {first[name], root[name]}.isdisjoint({second[name], other_root[name]}), name
        for name in ["getrandom", "urandom", "random", "uuid", "uuid4", "hash"]:
            assert first[name] != root[name]


def links(layer):
    layer.add("etc/machine-id", tarfile.SYMTYPE, target="/none/there")
    layer.add("etc/hosts", tarfile.SYMTYPE, target="/dev/full")
    layer.add("var/lib/dbus/machine-id", content=b"0123456789abcdef0123456789abcdef\n", mode=0o444, parents=True)


def folders(layer):
    layer.add("etc/machine-id", tarfile.DIRTYPE)
    layer.add("etc/machine-id/kept", content=b"kept\n")
    layer.add("etc/hosts", tarfile.DIRTYPE)
    layer.add("var/lib", tarfile.SYMTYPE, target="/proc/1/root")


def others(layer):
    layer.add("etc/machine-id", content=b"uninitialized\n", mode=0o444)
    layer.add("etc/hosts", tarfile.FIFOTYPE)
    layer.add("var/lib/dbus/machine-id", tarfile.SYMTYPE, target="/etc/machine-id", parents=True)


@pytest.mark.outside(MADE_HERE)
async def test_an_image_cannot_mislead_the_agent_with_its_id_or_hosts_file(serve, tmp_path):
    made = {name: small_image(tmp_path / name, fill) for name, fill in [("l", links), ("f", folders), ("o", others)]}
    server = serve(IMAGE_SHELL=made["l"], IMAGE_PYTHON=made["f"], IMAGE_NODE=made["o"], IMAGE_CACHE_DIR=str(tmp_path / "cache"))
    server.start()
    async with server.client() as tools:

        async def run(made, code):
            ran = await tools.call("execute", environment_id=made["environment_id"], code=code, language="shell")
            return ran["stdout"].splitlines()

        show = "cat /etc/machine-id /var/lib/dbus/machine-id; stat -c '%F %a' /etc/machine-id /etc/hosts; tail -n 1 /etc/hosts"
        async with tools.environment("shell") as one:
            machine_id, dbus, *rest = await run(one, show + "; ls -d /none")
            assert re.fullmatch("[0-9a-f]{32}", machine_id) and dbus == machine_id != "0123456789abcdef" * 2
            name = "env-" + one["environment_id"][:8]
            assert rest == ["regular file 444", "regular file 644", f"127.0.0.1 {name}"]
        async with tools.environment("node") as one:
            machine_id, dbus, *rest = await run(one, show)
            assert re.fullmatch("[0-9a-f]{32}", machine_id) and dbus == machine_id
            name = "env-" + one["environment_id"][:8]
            assert rest == ["regular file 444", "regular file 644", f"127.0.0.1 {name}"]
        # The image keeps its folders, and the machine works.
        async with tools.environment("python") as one:
            code = "cat /etc/machine-id/kept; ls -A /etc/machine-id /etc/hosts /etc | grep waggle; cat /proc/sys/kernel/hostname"
            assert await run(one, code) == ["kept", "env-" + one["environment_id"][:8]]


# An image's agent that forbids itself one request to the kernel's random number generator.
AGENT = """#!/usr/bin/perl
# If the call is ioctl (16) and its second argument is the request, the filter returns EPERM.
my $code = pack("(SCCL)6", 0x20,0,0,0, 0x15,0,3,16, 0x20,0,0,24, 0x15,0,1,REQUEST, 0x06,0,0,0x50001, 0x06,0,0,0x7fff0000);
syscall(157, 22, 2, pack("Sx6P", 6, $code), 0, 0) == 0 or die "prctl: $!";
exec "/usr/lib/waggle/waggle-agent", @ARGV;
"""
RNDADDENTROPY, RNDRESEEDCRNG, UNUSED = 0x40085203, 0x5207, 0x5299


@pytest.mark.outside(MADE_HERE)
async def test_no_call_is_served_before_the_kernel_has_the_hosts_random_bytes(serve, tmp_path):
    def copy(source, target):
        # Only the index changes, and the blobs are large.
        try:
            os.link(source, target) if "blobs" in source else shutil.copy2(source, target)
        except OSError:
            shutil.copy2(source, target)

    def of(request):
        layout = tmp_path / str(request)
        shutil.copytree(ROOT / "target/images/shell", layout, copy_function=copy)
        layer = Layer()
        layer.add("opt/agent", content=AGENT.replace("REQUEST", str(request)).encode(), mode=0o755)
        add_layer(layout, layer.end())
        version = re.search(r"const VERSION: u32 = (\d+);", (ROOT / "protocol/src/lib.rs").read_text())[1]
        reconfigure(layout, Labels={"waggle.agent.protocol": version, "waggle.agent.path": "/opt/agent"})
        return f"oci:{layout}"

    images = {"IMAGE_PYTHON": of(RNDADDENTROPY), "IMAGE_NODE": of(RNDRESEEDCRNG), "IMAGE_SHELL": of(UNUSED)}
    server = serve(IMAGE_CACHE_DIR=str(tmp_path / "cache"), **images).start()
    async with server.client() as tools:
        origins = []
        for language in ["python", "node", "shell"]:
            async with tools.environment(language) as made:
                origins.append(made["agent_origin"])
                ran = await tools.call("execute", environment_id=made["environment_id"], code="echo served", language="shell")
                assert ran["stdout"] == "served\n"
        # An agent that cannot pass the bytes on ends before it serves a call, and the host's agent takes its place.
        assert origins == ["host", "host", "image"]
    assert server.output().count("waiting for another") == 2
