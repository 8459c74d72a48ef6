# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Languages and their tools work in a shell as on any Linux: Python's cache, pip, npm and compilers."""

import contextlib
import json
import shutil
import tarfile

import pytest

import repositories
from layouts import Layer
from nested import digest_of_image
from repositories import add_layer
from server import ROOT
from test_linux import output

pytestmark = pytest.mark.outside("makes an image in a folder of this machine")

LIBRARY = "usr/lib/python3.11"


def python_of_docker(layout):
    """Adds Debian's Python to an image in the layout of Docker's official image: in /usr/local, without .pyc files."""
    layer = Layer()
    blobs = ROOT / "target/images/python/blobs/sha256"
    manifest = json.loads((blobs / digest_of_image("python")).read_text())
    for blob in manifest["layers"]:
        with tarfile.open(blobs / blob["digest"].removeprefix("sha256:")) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name == "usr/bin/python3.11":
                    layer.add("usr/local/bin/python3.11", content=archive.extractfile(member).read(), mode=0o755)
                elif name.startswith(LIBRARY) and "__pycache__" not in name and "/config-" not in name and member.isfile():
                    layer.add(f"usr/local/lib/python3.11{name.removeprefix(LIBRARY)}", content=archive.extractfile(member).read())
    layer.add("usr/local/bin/python3", tarfile.SYMTYPE, target="python3.11")
    # Without the virtual environment, which uses Debian's own Python.
    layer.add("home/sandbox/.wh.venv")
    add_layer(layout, layer.end())


IMPORTS = """
import time
began = time.monotonic()
import json, asyncio, http.client, urllib.request, sqlite3, unittest, sys
print(sys.prefix, json.__cached__, __import__("os").path.exists(json.__cached__), time.monotonic() - began)
"""


@pytest.mark.long
async def test_python_without_compiled_modules_caches_them_in_the_home(serve, tmp_path):
    layout = tmp_path / "image"
    shutil.copytree(ROOT / "target/images/python", layout)
    python_of_docker(layout)
    server = serve(IMAGE_PYTHON=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("python") as made:
        cache = "/home/sandbox/.cache/pycache/usr/local/lib/python3.11"
        prefix, cached, exists, _ = (await output(tools, made, IMPORTS, "python")).split()
        assert (prefix, cached, exists) == ("/usr/local", f"{cache}/json/__init__.cpython-311.pyc", "True")
        # The agent compiles further modules, also those that no call has imported, and then leaves no process.
        code = f"until [ -e {cache}/platform.cpython-311.pyc ] && ! pgrep -f pycache_prefix >/dev/null; do sleep 0.5; done"
        await output(tools, made, code)
        seconds = []
        for empty in [{"PYTHONPYCACHEPREFIX": "/tmp/empty"}, {}]:
            ran = await tools.call("execute", environment_id=made["environment_id"], code=IMPORTS, environment=empty)
            seconds.append(float(ran["stdout"].split()[-1]))
        print("seconds for the imports without and with the cache", seconds)
        assert seconds[1] < 0.8 * seconds[0], seconds


async def test_pip_installs_in_a_shell_and_python_builds_extensions(serve, tmp_path):
    with contextlib.ExitStack() as stack:
        (tmp_path / "repository").mkdir()
        port = stack.enter_context(repositories.serve(tmp_path / "repository"))
        layout = repositories.image("python", tmp_path, port)
        server = serve(IMAGE_PYTHON=layout, IMAGE_CACHE_DIR=str(tmp_path / "cache"), EGRESS=f"127.0.0.1:{port}").start()
        async with server.client() as tools, tools.environment("python") as made:
            code = "export PIP_DISABLE_PIP_VERSION_CHECK=1; pip install --quiet waggle-bee && bash -lc 'python3 -c \"import waggle_bee; print(waggle_bee.SAYS)\"'; command -v pip pip3"
            assert (await output(tools, made, code)).split() == ["hum", "/home/sandbox/venv/bin/pip", "/home/sandbox/venv/bin/pip3"]
            assert await output(tools, made, "import waggle_bee; print(waggle_bee.SAYS)", "python") == "hum\n"
            source = "#include <Python.h>\nint main(void) { return PY_MAJOR_VERSION != 3; }\n"
            await tools.call("write_file", environment_id=made["environment_id"], path="main.c", content=source)
            assert await output(tools, made, "gcc -o main $(python3-config --includes) main.c && ./main && echo built") == "built\n"
            tools_found = "for tool in curl git less nano ps free make g++; do command -v $tool >/dev/null || echo $tool is missing; done"
            assert await output(tools, made, tools_found) == ""


MODULE = """
#include <node_api.h>
static napi_value make(napi_env env, napi_value exports) {
  napi_value seven;
  napi_create_int32(env, 7, &seven);
  napi_set_named_property(env, exports, "seven", seven);
  return exports;
}
NAPI_MODULE(hive, make)
"""
FILES = {
    "hive/package.json": '{"name": "hive", "version": "1.0.0", "gypfile": true, "bin": {"hive": "index.js"}}',
    "hive/binding.gyp": '{"targets": [{"target_name": "hive", "sources": ["hive.c"]}]}',
    "hive/hive.c": MODULE,
    "hive/index.js": "#!/usr/bin/env node\nconsole.log(require('./build/Release/hive').seven)\n",
    "buzz/package.json": '{"name": "buzz", "version": "1.0.0", "bin": {"buzz": "buzz.js"}}',
    "buzz/buzz.js": "#!/bin/sh\necho buzz\n",
}
# Nothing can be downloaded. npm's output is shown if it fails.
INSTALL = """
npm_install() { npm install --offline --no-audit --no-fund --loglevel=error "$@" >log 2>&1 || cat log; }
tar czf hive.tgz hive; tar czf buzz.tgz buzz
npm_install ./hive.tgz
npm_install --global ./buzz.tgz
hive; buzz
bash -lc 'command -v hive buzz npm'
"""


@pytest.mark.long
async def test_node_builds_native_modules_and_installs_global_programs(server):
    async with server.client() as tools, tools.environment("node") as made:
        for path, content in FILES.items():
            await tools.call("write_file", environment_id=made["environment_id"], path=path, content=content)
        # The header files are in the image.
        printed, found = (await output(tools, made, INSTALL, timeout_seconds=170)).split("buzz\n", 1)
        assert printed == "7\n"
        assert found.split() == ["/home/sandbox/node_modules/.bin/hive", "/home/sandbox/.local/bin/buzz", "/usr/local/bin/npm"]
