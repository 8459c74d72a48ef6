# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The user of commands: names, homes, groups and search paths, in images that have users and tools of their own."""

import shutil
import subprocess
import tarfile

import pytest

from layouts import Layer
from repositories import add_layer, reconfigure
from server import ROOT
from test_linux import output

pytestmark = pytest.mark.outside("makes an image in a folder of this machine")

NODE = "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:100:Node:/home/node:/bin/bash\n"


@pytest.fixture
def with_layer(tmp_path, serve):
    """Makes a server whose shell image is one of the project's images, with a layer and other settings."""

    def make(name, layer, **settings):
        layout = tmp_path / name
        shutil.copytree(ROOT / "target/images" / name, layout)
        add_layer(layout, layer.end())
        reconfigure(layout, **settings)
        return serve(IMAGE_SHELL=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()

    return make


def add_repository(layer, folder, place):
    """Adds a git repository of root to the layer."""
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    for path in sorted(folder.rglob("*")):
        name = f"{place}/{path.relative_to(folder)}"
        if path.is_dir():
            layer.add(name, tarfile.DIRTYPE)
        else:
            layer.add(name, content=path.read_bytes())


async def test_the_images_own_user_keeps_its_name_home_and_groups(with_layer, tmp_path):
    layer = Layer()
    layer.add("etc/passwd", content=NODE.encode())
    layer.add("etc/group", content=b"root:x:0:\nusers:x:100:\nvideo:x:44:node\nkeepers:x:997:other,node\nothers:x:998:other\n")
    layer.add("home/node", tarfile.DIRTYPE, uid=1000, gid=100)
    layer.add("home/node/.profile", content=b"export FROM_PROFILE=yes\n", uid=1000, gid=100)
    layer.add("root", tarfile.DIRTYPE, mode=0o700)
    layer.add("root/.bashrc", content=b"#\n", mode=0o600)
    layer.add("root/.local", tarfile.DIRTYPE, mode=0o700)
    layer.add("root/.local/bin", tarfile.DIRTYPE)
    layer.add("root/.local/bin/tool", content=b"#!/bin/sh\necho tool\n", mode=0o755)
    layer.add("srv", tarfile.DIRTYPE)
    add_repository(layer, tmp_path / "repository", "srv/repository")
    path = "PATH=/root/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/last"
    server = with_layer("shell", layer, Env=[path, "LANG=C.UTF-8"], WorkingDir="")
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        code = 'whoami; echo "$USER $LOGNAME $HOME $SHELL $TERM"; id; echo ~node; readlink /home/sandbox; pwd; echo $PATH'
        whoami, variables, number, tilde, link, folder, search = (await output(tools, made, code)).splitlines()
        assert (whoami, variables) == ("node", "node node /home/node /bin/bash dumb")
        assert number == "uid=1000(node) gid=100(users) groups=100(users),44(video),997(keepers)"
        assert (tilde, link, folder) == ("/home/node",) * 3
        first, last = "/home/node/venv/bin:/home/node/.local/bin:/root/.local/bin:", ":/opt/last:/home/node/node_modules/.bin"
        assert search.startswith(first) and search.endswith(last)
        # File calls lead to the same home, as the same user.
        await tools.call("write_file", environment_id=one, path="a/note", content="hello")
        assert await output(tools, made, "cat ~/a/note; stat -c ' %U %G' ~/a/note /home/sandbox/a ~") == "hello node users\n node users\n node users\n"
        # Login shells have the same search path, to which Debian's profile adds, and read the user's own profile.
        for shell in ["bash -lc", "sh -lc"]:
            expected = f"tool\nyes {search}:/usr/local/games:/usr/games\n"
            assert await output(tools, made, f"{shell} 'tool; echo $FROM_PROFILE $PATH'") == expected
        # Root's home is closed except for the tools.
        closed = "ls /root; ls /root/.local; cat /root/.bashrc; touch /root/.local/bin/x"
        ran = await tools.call("execute", environment_id=one, code=closed)
        assert (ran["stdout"], ran["stderr"].count("Permission denied")) == ("", 4), ran
        assert await output(tools, made, "git -C /srv/repository status --porcelain; stat -c %U /srv/repository/.git") == "root\n"


async def test_a_user_named_sandbox_gets_the_number_and_the_home_keeps_its_files(with_layer):
    layer = Layer()
    layer.add("etc/passwd", content=b"root:x:0:0::/root:/bin/sh\nsandbox:x:1001:1002::/srv/sandbox:/bin/sh\n")
    layer.add("etc/group", content=b"root:x:0:\nkeepers:x:1002:\n")
    layer.add("home/sandbox/kept", content=b"kept", parents=True)
    # The profile of Alpine replaces the search path and runs the scripts of a folder.
    profile = "export PATH=/usr/bin:/sbin:/bin\nfor script in /etc/profile.d/*.sh; do [ -r \"$script\" ] && . \"$script\"; done\n"
    layer.add("etc/profile", content=profile.encode())
    server = with_layer("foreign", layer)
    async with server.client() as tools, tools.environment("shell") as made:
        code = "whoami; id; echo $USER $HOME ~sandbox; cat ~/kept; touch ~/new; stat -c ' %U %G' ~/new"
        assert (await output(tools, made, code)).splitlines() == [
            "sandbox",
            "uid=1000(sandbox) gid=1002(keepers) groups=1002(keepers)",
            "sandbox /home/sandbox /home/sandbox",
            "kept sandbox keepers",
        ]
        own = "/home/sandbox/venv/bin:/home/sandbox/.local/bin"
        expected = f"{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/home/sandbox/node_modules/.bin\n"
        assert await output(tools, made, "echo $PATH; sh -lc 'echo $PATH'") == expected * 2


async def test_a_home_with_files_is_never_replaced_by_a_link(with_layer):
    layer = Layer()
    layer.add("etc/passwd", content=NODE.encode())
    layer.add("home/node", tarfile.DIRTYPE, uid=1000, gid=100)
    layer.add("home/sandbox/kept", content=b"kept", parents=True)
    # A profile that runs no scripts gets the line that runs waggle's.
    layer.add("etc/profile", content=b"PATH=/bin")
    server = with_layer("foreign", layer)
    async with server.client() as tools, tools.environment("shell") as made:
        code = "whoami; echo $HOME ~node; cat ~/kept; echo; sh -lc 'echo ${PATH%%:*}'"
        assert (await output(tools, made, code)).splitlines() == ["node", "/home/sandbox /home/sandbox", "kept", "/home/sandbox/venv/bin"]
