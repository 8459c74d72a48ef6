# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Third-party images and invalid images."""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tarfile

import anyio
import pytest

from layouts import Layer, write_layout
from nested import file_of_image
from repositories import add_layer, reconfigure
from server import BINARY, CALL_S, ROOT, image

MADE_HERE = "makes an image in a folder of this machine"
# The version of the protocol, which the host compares with an image's label.
VERSION = re.search(r"const VERSION: u32 = (\d+);", (ROOT / "protocol/src/lib.rs").read_text())[1]


async def test_an_image_without_an_agent_is_served_by_the_hosts_agent(serve):
    server = serve(IMAGE_SHELL=image("foreign")).start()
    async with server.client() as tools:
        async with tools.environment("shell") as made:
            one = made["environment_id"]
            assert made["agent_origin"] == "host"
            ran = await tools.call("execute", environment_id=one, code="id -u; echo $HOME; ls /; busybox | head -n 1")
            lines = ran["stdout"].splitlines()
            assert lines[:2] == ["1000", "/home/sandbox"], ran
            assert "tmp" in lines
            assert any(line.startswith("BusyBox") for line in lines)
            await tools.call("write_file", environment_id=one, path="note", content="hello")
            assert await tools.text("read_file", environment_id=one, path="note") == "hello"
            # The image contains no package manager.
            assert await tools.refusal("install_packages", environment_id=one, packages="anthill")


@pytest.mark.outside("the nested host does not contain the image")
async def test_an_image_built_on_musl_is_served_by_the_hosts_agent(serve):
    # The guest asks for a name that is denied, and for a name that is allowed to have an IPv4 address only.
    settings = {"RUNTIME_SHELL_EXEC_COMMAND": "/bin/tell", "EGRESS": "deny elsewhere.example, 192.0.2.7:443"}
    server = serve(IMAGE_SHELL=image("musl"), **settings)
    server.set_hosts(hive="192.0.2.7 2001:db8::7")
    async with server.start().client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        assert made["agent_origin"] == "host"
        await tools.call("write_file", environment_id=one, path="note", content="hello")
        assert await tools.text("read_file", environment_id=one, path="note") == "hello"
        listed = await tools.call("list_files", environment_id=one, path="/lib")
        assert [entry["name"] for entry in listed["files"]] == ["ld-musl-x86_64.so.1"]
        ran = await tools.call("execute", environment_id=one, code="seven b")
        assert (ran["exit_code"], ran["stdout"].splitlines()) == (
            3,
            [
                "user sandbox /home/sandbox",
                "loader musl",
                "script 7",
                "thread 1",
                "child 7",
                "temporary made",
                "localhost 0",
                # EAI_NONAME: the name does not exist, answered at once.
                "elsewhere -2",
                "hive 192.0.2.7",
            ],
        )


@pytest.mark.outside(MADE_HERE)
async def test_an_image_of_one_static_program_is_enough(serve, tmp_path):
    layer = Layer()
    layer.add("busybox", content=file_of_image("foreign", "bin/busybox"), mode=0o755)
    write_layout(tmp_path / "image", [layer.end()])
    server = serve(
        IMAGE_SHELL=f"oci:{tmp_path}/image",
        IMAGE_CACHE_DIR=str(tmp_path / "cache"),
        RUNTIME_SHELL_EXEC_COMMAND="/busybox sh",
    ).start()
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        # File calls need nothing from the image.
        await tools.call("write_file", environment_id=one, path="a/note", content="hello")
        assert await tools.text("read_file", environment_id=one, path="a/note") == "hello"
        listed = await tools.call("list_files", environment_id=one, path="a")
        assert [(entry["name"], entry["size"]) for entry in listed["files"]] == [("note", 5)]
        code = "/busybox id; /busybox whoami; /busybox stat -c %U a/note; /busybox ls /; exit 4"
        ran = await tools.call("execute", environment_id=one, code=code)
        user, name, owner, *root = ran["stdout"].splitlines()
        assert (ran["exit_code"], user, name, owner) == (
            4, "uid=1000(sandbox) gid=1000(sandbox) groups=1000(sandbox)", "sandbox", "sandbox"
        )
        assert {"busybox", "dev", "etc", "home", "proc", "tmp"} <= set(root) and "lib" not in root
        # The error names what the image lacks.
        assert "python3" in await tools.refusal("execute", environment_id=one, code="1", language="python")


@pytest.mark.outside(MADE_HERE)
@pytest.mark.parametrize(
    "labels",
    [
        {"waggle.agent.protocol": "999", "waggle.agent.path": "/bin/busybox"},
        {"waggle.agent.protocol": VERSION, "waggle.agent.path": "/no/such/agent"},
        # This agent starts and exits at once: busybox has no applet `serve`.
        {"waggle.agent.protocol": VERSION, "waggle.agent.path": "/bin/busybox"},
    ],
    ids=["another version", "missing", "exits at once"],
)
async def test_an_unusable_agent_of_an_image_is_replaced(serve, tmp_path, labels):
    layout = tmp_path / "image"
    shutil.copytree(ROOT / "target/images/foreign", layout)
    reconfigure(layout, Labels=labels)
    server = serve(IMAGE_SHELL=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        assert made["agent_origin"] == "host"
        ran = await tools.call("execute", environment_id=made["environment_id"], code="echo served")
        assert ran["stdout"] == "served\n"


@pytest.mark.outside(MADE_HERE)
async def test_commands_start_in_the_images_working_directory_or_the_home(serve, tmp_path):
    layer = Layer()
    # The user `sandbox` owns the parent folder, so it can remove `srv/app`.
    layer.add("srv", tarfile.DIRTYPE, uid=1000, gid=1000)
    layer.add("srv/app", tarfile.DIRTYPE, uid=1000, gid=1000)
    layer.add("shut", tarfile.DIRTYPE, mode=0o700)
    layer.add("link", tarfile.SYMTYPE, target="srv/app")
    layer = layer.end()

    def of(folder):
        """An image with that working directory."""
        layout = tmp_path / folder.strip("/").replace("/", "-")
        shutil.copytree(ROOT / "target/images/foreign", layout)
        add_layer(layout, layer)
        reconfigure(layout, WorkingDir=folder)
        return f"oci:{layout}"

    # The control group's folder is an open descriptor when a command starts; the command must not start there.
    images = {"IMAGE_SHELL": of("/srv/app"), "IMAGE_PYTHON": of("/shut"), "IMAGE_NODE": of("/proc/self/fd/10")}
    server = serve(IMAGE_CACHE_DIR=str(tmp_path / "cache"), **images).start()
    async with server.client() as tools:
        for runtime in ["python", "node"]:
            async with tools.environment(runtime) as made:
                assert await place(tools, made) == "/home/sandbox"
        async with tools.environment("shell") as made:
            assert await place(tools, made) == "/srv/app"
            # The call's own working directory and file paths are still relative to the home.
            await tools.call("write_file", environment_id=made["environment_id"], path="sub/note", content="hello")
            assert await place(tools, made, working_directory="sub") == "/home/sandbox/sub"
            assert await place(tools, made, working_directory="/link") == "/srv/app"
            ran = await tools.call("execute", environment_id=made["environment_id"], code="rmdir /srv/app && cat ~/sub/note")
            assert ran["stdout"] == "hello", ran
            assert await place(tools, made) == "/home/sandbox"


async def place(tools, made, **arguments):
    """The folder in which a command starts."""
    one = made["environment_id"]
    ran = await tools.call("execute", environment_id=one, code="/bin/busybox pwd -P", language="shell", **arguments)
    return ran["stdout"].strip()


@pytest.mark.outside("looks at a file")
def test_the_agent_is_static():
    agent = (ROOT / "target/agent/waggle-agent").read_bytes()
    assert agent[:4] == b"\x7fELF"
    # The ELF header gives the offset and number of program headers; each begins with its type.
    (start,) = struct.unpack_from("<Q", agent, 0x20)
    size, count = struct.unpack_from("<HH", agent, 0x36)
    kinds = [struct.unpack_from("<I", agent, start + number * size)[0] for number in range(count)]
    loadable, interpreter = 1, 3
    assert loadable in kinds
    assert interpreter not in kinds


@pytest.mark.outside(MADE_HERE)
async def test_a_folder_without_an_image_is_rejected(serve, tmp_path):
    (tmp_path / "index.json").write_text("{}")
    server = serve(IMAGE_SHELL=f"oci:{tmp_path}").start("/healthz")
    status, body = server.status("/readyz")
    # The page is readable without a token, so only the log has the path.
    checks = {"disk": "ok", "images": "failed", "kernel": "ok"}
    assert (status, body) == (503, {"status": "unavailable", "checks": checks})
    assert f"failed to find {tmp_path}" in server.output()
    async with server.client() as tools:
        await create_fails(tools, server)


@pytest.mark.outside(MADE_HERE)
async def test_a_corrupt_layer_is_refused(serve, tmp_path):
    broken = tmp_path / "shell"
    shutil.copytree(ROOT / "target/images/shell", broken)
    largest = max((broken / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as layer:
        layer.seek(largest.stat().st_size // 2)
        layer.write(b"\0" * 64)
    server = serve(IMAGE_SHELL=f"oci:{broken}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools:
        await create_fails(tools, server)
        # Other images still work.
        async with tools.environment("python") as made:
            assert made["status"] == "running"
    # The cache has the other image and its record, and nothing of the broken image.
    kept = [path.suffix for path in pathlib.Path(tmp_path / "cache").rglob("*") if path.is_file() and path.suffix]
    assert sorted(kept) == [".erofs", ".json"]


def damage(path):
    """Flips a byte of a file, near its end, where no file is that a start needs."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size * 7 // 8)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.outside("changes a file in a cache of this machine")
async def test_a_damaged_image_is_reported_and_merged_again(serve, tmp_path):
    server = serve(IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()

    def verify():
        command = [BINARY, "image", "verify", "--json"]
        ran = subprocess.run(command, env=server.variables(), capture_output=True, text=True, timeout=CALL_S, check=False)
        (listed,) = json.loads(ran.stdout)
        return listed["state"], ran.returncode, ran.stderr

    async with server.client() as tools, tools.environment("shell"):
        pass
    assert verify() == ("whole", 0, "")
    server.stop()
    (merged,) = (tmp_path / "cache").glob("merged-*/*.erofs")
    damage(merged)
    copy = shutil.copy(merged, tmp_path)
    state, code, told = verify()
    assert (state, code) == ("damaged", 1) and "they were removed" in told and not merged.exists()
    shutil.move(copy, merged)
    server.start()
    async with server.client() as tools, tools.environment("shell") as made:
        while "a cached image is damaged and was removed" not in server.output():
            await anyio.sleep(0.1)
        # What runs is left alone, and the next environment gets a whole image.
        async with tools.environment("shell"):
            assert verify() == ("whole", 0, "")
            # A running server does not verify the image again, but the command does, and the next one is whole again.
            damage(merged)
            assert verify()[:2] == ("damaged", 1)
        async with tools.environment("shell"):
            assert verify() == ("whole", 0, "")
            ran = await tools.call("execute", environment_id=made["environment_id"], code="echo alive")
            assert ran["stdout"] == "alive\n"


async def create_fails(tools, server):
    """Asserts that a create fails, that no environment is running and that nothing is left behind."""
    assert await tools.fault("create_environment", language="shell") == "start_failed"
    listed = await tools.call("list_environments")
    assert [one for one in listed["environments"] if one["status"] == "running"] == []
    server.assert_nothing_left()
