# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Code runs as if its file were in the working directory, its output is complete, and what it leaves running lives on."""

import asyncio
import shutil
import time

import pytest

from layouts import Layer
from repositories import add_layer, reconfigure
from server import ROOT

# A folder with modules, and a git repository if the image has git.
PROJECT = """
mkdir -p ~/project/node_modules/local ~/node_modules/shared /tmp/elsewhere
cd ~/project
echo 'VALUE = 7' >helper.py
echo 'raise Exception("not the library")' >/tmp/json.py
cp /tmp/json.py /tmp/elsewhere/json.py
echo 'exports.value = 7;' >helper.js
echo '{"name": "local", "main": "main.js"}' >node_modules/local/package.json
echo 'module.exports = "local";' >node_modules/local/main.js
echo '{"name": "shared", "exports": "./main.mjs"}' >~/node_modules/shared/package.json
echo 'export default "shared";' >~/node_modules/shared/main.mjs
echo data >data.txt
"""

PYTHON = '''
"""The docstring."""
from __future__ import annotations
import helper, json, os, multiprocessing, subprocess, sys

def times(number): return number * helper.VALUE

if __name__ == "__main__":
    print(__doc__, open("data.txt").read().strip(), json.loads("[1]"), len(sys.argv), os.path.isfile(__file__))
    with multiprocessing.get_context("spawn").Pool(2) as pool: print(pool.map(times, [1, 2]))
    print(sorted(os.listdir()))
    child = "import sys; print(repr(sys.path[0]), sys.flags.safe_path if hasattr(sys.flags, 'safe_path') else '')"
    print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip())
    print([name for name in os.environ if name.startswith("PYTHON") and name != "PYTHONUNBUFFERED"])
    def fail(): raise ValueError("on purpose")
    fail()
'''

COMMON_JS = """
const { value } = require('./helper');
const { Worker, isMainThread } = require('node:worker_threads');
const { execFileSync, fork } = require('node:child_process');
if (!isMainThread) { console.log('worker', value); process.exit(); }
if (process.argv[2]) { console.log('fork', value); process.exit(); }
console.log(value, require('local'), require.main === module, __dirname, require('node:fs').readdirSync('.').join(' '));
const inherited = "process.execArgv.includes('--require') || process.env.NODE_OPTIONS !== undefined";
console.log(execFileSync(process.execPath, ['-p', inherited]).toString().trim());
new Worker(__filename).on('exit', () => fork(__filename, ['again']));
"""

MODULE = """
import local from 'local';
import shared from 'shared';
import { value } from './helper.js';
console.log(local, shared, value, import.meta.dirname ?? new URL('.', import.meta.url).pathname);
console.log(await Promise.resolve('awaited'));
function fail() { throw new Error('on purpose'); }
fail();
"""


async def shell(tools, one, code, **arguments):
    return await tools.call("execute", environment_id=one, language="shell", code=code, **arguments)


async def test_python_code_sees_its_working_directory_and_leaves_no_trace(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        await shell(tools, one, PROJECT)
        ran = await tools.call("execute", environment_id=one, code=PYTHON, working_directory="project")
        lines = ran["stdout"].splitlines()
        assert lines[:2] == ["The docstring. data [1] 1 True", "[7, 14]"], ran
        assert lines[2] == "['__pycache__', 'data.txt', 'helper.js', 'helper.py', 'node_modules']", ran
        assert lines[3:] == ["'' False", "[]"], ran
        assert (ran["exit_code"], ran["stderr"].splitlines()[0]) == (1, "Traceback (most recent call last):"), ran
        # The traceback has only the code's own lines.
        assert ran["stderr"].count("File ") == 2 and '    def fail(): raise ValueError("on purpose")' in ran["stderr"], ran
        # Neither /tmp nor the folder of the code shadows the library.
        for folder in ["/tmp", "/"]:
            ran = await tools.call("execute", environment_id=one, code="import json; print(json.dumps(1))", working_directory=folder)
            # As with `python3 main.py`, a file in the working directory does.
            assert (ran["exit_code"], ran["stdout"]) == ((1, "") if folder == "/tmp" else (0, "1\n")), ran
        ran = await tools.call("execute", environment_id=one, code="print(1", working_directory="/")
        assert (ran["exit_code"], "SyntaxError: '(' was never closed" in ran["stderr"]) == (1, True), ran
        assert "Traceback" not in ran["stderr"], ran
        ran = await tools.call("execute", environment_id=one, code="import sys; sys.exit('enough')")
        assert (ran["exit_code"], ran["stderr"]) == (1, "enough\n"), ran
        # The code's file is gone when the reply is there.
        ran = await tools.call("execute", environment_id=one, code="import os; print(os.listdir('/tmp'), os.path.abspath(__file__))")
        listed, path = ran["stdout"].strip().rsplit(" ", 1)
        assert "waggle" not in listed and path.startswith("/run/waggle/code/waggle_"), ran
        ran = await shell(tools, one, f"ls {path}; ls /run/waggle/code")
        assert (ran["stderr"].count("No such file"), ran["stderr"].count("Permission denied")) == (1, 1), ran


async def test_node_code_sees_its_working_directory_and_its_packages(server):
    async with server.client() as tools, tools.environment("node") as made:
        one = made["environment_id"]
        await shell(tools, one, PROJECT)
        ran = await tools.call("execute", environment_id=one, code=COMMON_JS, working_directory="project")
        assert (ran["exit_code"], ran["stdout"].splitlines()) == (
            0,
            [
                "7 local true /home/sandbox/project data.txt helper.js helper.py node_modules",
                "false",
                "worker 7",
                "fork 7",
            ],
        ), ran
        ran = await tools.call("execute", environment_id=one, code=MODULE, working_directory="project")
        assert ran["stdout"].splitlines() == ["local shared 7 /home/sandbox/project", "awaited"], ran
        assert ran["exit_code"] == 1 and "function fail() { throw new Error('on purpose'); }" in ran["stderr"], ran
        # The package's own setting decides, as for a file in the folder.
        await tools.call("write_file", environment_id=one, path="typed/package.json", content='{"type": "module"}')
        ran = await tools.call("execute", environment_id=one, code="console.log(typeof require)", working_directory="typed")
        assert ran["stdout"] == "undefined\n", ran
        ran = await tools.call("execute", environment_id=one, code="let a = ;")
        assert ran["exit_code"] == 1 and "SyntaxError: Unexpected token ';'" in ran["stderr"], ran


@pytest.mark.outside("makes an image in a folder of this machine")
async def test_node_code_finds_the_packages_of_an_image_whose_folder_belongs_to_root(serve, tmp_path):
    layer = Layer()
    layer.add("app/node_modules/inside/package.json", content=b'{"name": "inside", "main": "main.js"}', parents=True)
    layer.add("app/node_modules/inside/main.js", content=b"module.exports = 'inside';")
    layout = tmp_path / "image"
    shutil.copytree(ROOT / "target/images/node", layout)
    add_layer(layout, layer.end())
    reconfigure(layout, WorkingDir="/app")
    server = serve(IMAGE_NODE=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("node") as made:
        one = made["environment_id"]
        for code in ["console.log(require('inside'))", "import inside from 'inside'; console.log(inside)"]:
            ran = await tools.call("execute", environment_id=one, code=code)
            assert ran["stdout"] == "inside\n", ran


# Programs that print, and then end only with a signal.
UNFINISHED = {
    "python": "import time\nprint('step 1')\ntime.sleep(60)",
    "shell": """python3 -c "import time; print('step 1'); time.sleep(60)" """,
}

CLEANS_UP = """
import signal, sys, time
def end(number, frame):
    print("cleaned up")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
time.sleep(60)
"""


async def test_a_timeout_loses_no_output_and_lets_programs_clean_up(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        for language, code in UNFINISHED.items():
            result = await tools.raw("execute", environment_id=one, language=language, code=code, timeout_seconds=4)
            ran = result.structured_content
            assert (ran["timed_out"], ran["stdout"], ran["exit_code"]) == (True, "step 1\n", 143), ran
        result = await tools.raw("execute", environment_id=one, code=CLEANS_UP, timeout_seconds=4)
        ran = result.structured_content
        assert (ran["stdout"], ran["exit_code"], "signal" in ran) == ("cleaned up\n", 3, False), ran
        # What is already gone is not waited for.
        assert ran["duration_ms"] < 8000, ran


LATE_OUTPUT = {
    "a filter": ("exec > >(sed 's/^/[b] /'); echo one; echo two", "[b] one\n[b] two\n", ""),
    "a copy": ("exec > >(tee log) 2> >(tee log2 >&2); echo out; echo err >&2", "out\n", "err\n"),
    "a slow reader": ("{ echo one; } > >(sleep 0.2; cat); :", "one\n", ""),
    "a pipeline in the background": ("(sleep 0.1; echo late) & echo first", "first\nlate\n", ""),
}


async def test_output_of_a_commands_own_readers_is_complete(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        for name, (code, stdout, stderr) in LATE_OUTPUT.items():
            for _ in range(3):
                ran = await shell(tools, one, code)
                assert (ran["stdout"], ran["stderr"], ran["exit_code"]) == (stdout, stderr, 0), (name, ran)
                assert "background_file" not in ran, (name, ran)


FETCH = """
import urllib.request
for _ in range(3): print(urllib.request.urlopen("http://127.0.0.1:8000/").status)
"""


async def test_what_a_background_process_writes_can_be_read_later(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        started = time.monotonic()
        ran = await shell(tools, one, "cd /tmp; python3 -m http.server 8000 --bind 127.0.0.1 & sleep 3; echo started")
        assert (ran["stdout"].splitlines()[-1], ran["exit_code"]) == ("started", 0), ran
        log = ran["background_file"]
        assert log.startswith("/tmp/waggle_") and log in ran["hint"], ran
        ran = await tools.call("execute", environment_id=one, code=FETCH)
        assert ran["stdout"] == "200\n200\n200\n", ran
        assert (await tools.text("read_file", environment_id=one, path=log)).count('"GET / HTTP/1.1" 200') == 3
        # A server left behind costs its own call a moment, and later calls nothing.
        ran = await shell(tools, one, "sleep 1000 & echo at once")
        assert (ran["stdout"], ran["duration_ms"] < 4000) == ("at once\n", True), ran
        # A flood is cut to its end, and delays only itself.
        flood = "(sleep 1; seq 1 400000; echo last) & echo flooding"
        ran = await shell(tools, one, flood)
        for _ in range(240):
            if (await shell(tools, one, f"tail -n 1 {ran['background_file']}"))["stdout"] == "last\n":
                break
            await asyncio.sleep(0.5)
        size = await shell(tools, one, f"wc -c <{ran['background_file']}; head -n 1 {ran['background_file']}")
        count, first = size["stdout"].splitlines()
        assert 400_000 < int(count) <= 1 << 20 and first == "[the beginning of the output was removed]", size
        assert time.monotonic() - started < 300


async def test_calls_beyond_the_limit_wait_their_turn(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        code = "sleep 1; echo done"
        many = [tools.call("execute", environment_id=one, code=code, timeout_seconds=120) for _ in range(40)]
        assert [ran["stdout"] for ran in await asyncio.gather(*many)] == ["done\n"] * 40
        # A call whose own time ends first is refused, and the refusal says why.
        long = [
            asyncio.create_task(tools.raw("execute", environment_id=one, code="sleep 8", timeout_seconds=60))
            for _ in range(32)
        ]
        await asyncio.sleep(4)
        refusal = await tools.refusal("execute", environment_id=one, code="echo", timeout_seconds=2)
        assert "has its maximum of 32 running calls, and none ended within 2 s" in refusal, refusal
        # A file call waits for its turn as well.
        listing = await tools.call("list_files", environment_id=one, path="/run/waggle")
        assert [each["name"] for each in listing["files"]] == ["code", "node.cjs", "python.py"], listing
        await asyncio.gather(*long)


HOG = """
import subprocess, sys
code = "import time; time.sleep(2); hog = []\\nwhile True: hog.append(bytearray(b'x') * (8 << 20))"
subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
"""


async def test_a_background_process_killed_for_want_of_memory_is_told_once(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        ran = await tools.call("execute", environment_id=one, code=HOG)
        assert (ran["exit_code"], "hint" in ran) == (0, False), ran
        for _ in range(60):
            ran = await tools.call("execute", environment_id=one, code="import time; time.sleep(1)")
            if "hint" in ran:
                break
        assert ran["hint"] == "a background process was killed because the environment had run out of memory", ran
        assert "out_of_memory" not in ran, ran
        ran = await tools.call("execute", environment_id=one, code="print(1)")
        assert "hint" not in ran, ran
        listed = await tools.call("list_environments")
        counts = [each.get("background_memory_kills") for each in listed["environments"] if each["environment_id"] == one]
        assert counts == [1], listed
