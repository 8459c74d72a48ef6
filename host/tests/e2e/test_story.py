# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A user's first steps: environments of all three runtimes, code, files, commands."""

import asyncio
import json

import pytest

CSV = "name,legs\nbee,6\nspider,8\n"
SUM_LEGS = """
import csv, json
rows = list(csv.DictReader(open("data/animals.csv")))
legs = sum(int(row["legs"]) for row in rows)
json.dump({"legs": legs}, open("result.json", "w"))
print("legs:", legs)
"""


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_whole_story(server, mode):
    async with server.client(mode=mode) as tools:
        made = await tools.create("python", name="ants")
        python = made["environment_id"]
        assert made["name"] == "ants"
        assert made["runtime"] == "python"
        assert made["status"] == "running"
        assert made["timeout"] == "30m0s"
        assert made["agent_origin"] == "image"

        written = await tools.call("write_file", environment_id=python, path="data/animals.csv", content=CSV)
        assert written == {"bytes_written": len(CSV), "path": "data/animals.csv", "status": "written"}

        ran = await tools.call("execute", environment_id=python, code=SUM_LEGS)
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (0, "legs: 14\n", "")
        assert ran["duration_ms"] > 0

        result = await tools.text("read_file", environment_id=python, path="/home/sandbox/result.json")
        assert json.loads(result) == {"legs": 14}

        listed = await tools.call("list_files", environment_id=python)
        files = {file["name"]: file for file in listed["files"]}
        assert listed["path"] == "/home/sandbox"
        assert listed["count"] == len(listed["files"])
        assert files["data"]["is_dir"] is True
        assert (files["result.json"]["is_dir"], files["result.json"]["size"]) == (False, len('{"legs": 14}'))
        assert files["result.json"]["mode"].startswith("-rw")

        shell = await tools.call(
            "execute", environment_id=python, language="shell", code="id -un; uname -s; wc -l <result.json"
        )
        assert (shell["exit_code"], shell["stdout"]) == (0, "sandbox\nLinux\n0\n")
        failed = await tools.call("execute", environment_id=python, language="shell", code="echo oops >&2; exit 3")
        assert (failed["exit_code"], failed["stdout"], failed["stderr"]) == (3, "", "oops\n")

        async with tools.environment("node") as node, tools.environment("shell") as bash:
            ran = await tools.call(
                "execute", environment_id=node["environment_id"], code="console.log([1, 2, 3].map(x => x * 2))"
            )
            assert (ran["exit_code"], ran["stdout"]) == (0, "[ 2, 4, 6 ]\n")
            ran = await tools.call("execute", environment_id=bash["environment_id"], code="printf '%s\\n' a b c | tac")
            assert (ran["exit_code"], ran["stdout"]) == (0, "c\nb\na\n")

            listed = await tools.call("list_environments")
            assert listed["count"] == 3
            assert [one["runtime"] for one in listed["environments"]] == ["python", "node", "shell"]
            assert {one["status"] for one in listed["environments"]} == {"running"}

        gone = await tools.call("destroy_environment", environment_id=python)
        assert gone == {"message": f"Environment {python} has been destroyed", "status": "destroyed"}
        assert (await tools.call("list_environments"))["count"] == 0
        server.assert_nothing_left()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_long_steps_show_progress(server, mode):
    heard = []

    async def listen(progress, total, message):
        heard.append((progress, message))

    async with server.client(mode=mode) as tools:
        call = tools.client.call_tool
        made = await call("create_environment", {"language": "shell"}, progress_callback=listen)
        one = made.structured_content["environment_id"]
        steps = [progress for progress, _ in heard]
        assert steps == sorted(set(steps))
        assert any("boot" in message for _, message in heard)
        heard.clear()
        await call("execute", {"environment_id": one, "code": "sleep 1"}, progress_callback=listen)
        assert heard
        await tools.call("destroy_environment", environment_id=one)


async def test_structured_content_is_the_text(server):
    async with server.client() as tools:
        result = await tools.raw("list_environments")
        assert result.structured_content == json.loads(result.content[0].text) == {"count": 0, "environments": []}


async def test_a_command_past_its_timeout_is_killed_with_its_children(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        code = "sleep 1000 & sleep 1000"
        assert await tools.fault("execute", environment_id=one, code=code, timeout_seconds=2) == "timed_out"
        left = await tools.call("execute", environment_id=one, code="pgrep -c sleep")
        assert left["stdout"] == "0\n"


async def test_a_machine_has_no_network_card(server):
    async with server.client() as tools, tools.environment("shell") as made:
        # Kernels create virtual interfaces such as lo; a network card has a device behind it.
        cards = await tools.call("execute", environment_id=made["environment_id"], code="ls -d /sys/class/net/*/device")
        assert (cards["stdout"], cards["exit_code"]) == ("", 2)


async def test_pip_installs_a_wheel_made_in_the_guest(server):
    make_wheel = """
import zipfile
info = "anthill-1.0.dist-info"
with zipfile.ZipFile("anthill-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("anthill.py", "ants = 42\\n")
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: anthill\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", "")
"""
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        assert (await tools.call("execute", environment_id=one, code=make_wheel))["exit_code"] == 0
        settings = "[global]\nno-index = true\nfind-links = /home/sandbox\n"
        await tools.call("write_file", environment_id=one, path="/home/sandbox/.config/pip/pip.conf", content=settings)
        installed = await tools.call("install_packages", environment_id=one, packages="anthill==1.0")
        assert installed["exit_code"] == 0, installed
        assert "Successfully installed anthill-1.0" in installed["stdout"]
        ran = await tools.call("execute", environment_id=one, code="import anthill; print(anthill.ants)")
        assert ran["stdout"] == "42\n", ran
        missing = await tools.call("install_packages", environment_id=one, packages="no-such-package-at-all")
        assert missing["exit_code"] != 0
        assert "no-such-package-at-all" in missing["stderr"]


async def test_programs_can_open_standard_streams_by_name_and_resolve_local_names(server):
    async with server.client() as tools, tools.environment("python") as made:
        one = made["environment_id"]
        # The standard streams can be opened by name, and the machine can resolve its own name.
        code = """
import http.server, socket, sys, threading, urllib.request
open("/dev/stdout", "w").write("out\\n"); open("/dev/stderr", "w").write("err\\n")
print(open("/dev/stdin").read())
server = http.server.ThreadingHTTPServer(("localhost", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://localhost:{server.server_port}/").status)
print(socket.gethostbyname(socket.gethostname()))
"""
        ran = await tools.call("execute", environment_id=one, code=code, stdin="in")
        assert ran["stdout"] == "out\nin\n200\n127.0.0.1\n", ran
        assert ran["stderr"].startswith("err\n")


async def test_many_calls_run_at_once(server):
    async with server.client() as tools, tools.environment("shell") as made:
        arguments = {"environment_id": made["environment_id"], "code": "sleep 1; echo $$"}
        calls = [tools.call("execute", **arguments) for _ in range(12)]
        ran = await asyncio.gather(*calls)
        assert [one["exit_code"] for one in ran] == [0] * 12, ran
        assert len({one["stdout"] for one in ran}) == 12
