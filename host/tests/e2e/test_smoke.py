# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""All steps of using an environment in one test, for back ends with which all tests would take too long."""

import signal

import pytest

from repositories import HOST
from test_recovery import becomes


@pytest.mark.smoke
async def test_an_environment_works_from_create_to_destroy(serve):
    server = serve()
    # Guests may reach only the server itself.
    server.settings["EGRESS"] = f"127.0.0.1:{server.own_port}"
    async with server.start().client() as tools:
        made = await tools.create("shell")
        one = made["environment_id"]
        assert made["agent_origin"] == "image"
        ran = await tools.call("execute", environment_id=one, code="id -un")
        assert (ran["exit_code"], ran["stdout"]) == (0, "sandbox\n"), ran

        content = "".join(f"bee {number}\n" for number in range(20_000))
        await tools.call("write_file", environment_id=one, path="hive/bees", content=content)
        counted = await tools.call("execute", environment_id=one, code="wc -c <hive/bees")
        assert int(counted["stdout"]) == len(content)
        tail = await tools.call("execute", environment_id=one, code="tail -n 1 hive/bees")
        assert tail["stdout"] == "bee 19999\n"
        listed = await tools.call("list_files", environment_id=one, path="hive")
        assert [(file["name"], file["size"]) for file in listed["files"]] == [("bees", len(content))]

        ask = "curl --silent --show-error --max-time 20 http://{}/healthz"
        heard = await tools.call("execute", environment_id=one, code=ask.format(f"{HOST}:{server.own_port}"))
        assert heard["stdout"] == '{"status":"ok"}', heard
        heard = await tools.call("execute", environment_id=one, code=ask.format(f"{HOST}:9"))
        assert heard["exit_code"] != 0 and "network policy" in heard["hint"], heard

        code = "sleep 1000 & sleep 1000"
        assert await tools.fault("execute", environment_id=one, code=code, timeout_seconds=1) == "timed_out"
        left = await tools.call("execute", environment_id=one, code="pgrep -c sleep")
        assert left["stdout"] == "0\n"

        other = (await tools.create("shell"))["environment_id"]
        assert len(server.machines()) == 2
        await tools.call("destroy_environment", environment_id=other)
        # A warning about an ordinary destroy would hide those that matter.
        ordinary = server.output().split("environment is running")[-1]
        assert "WARN" not in ordinary and "ERROR" not in ordinary, ordinary
        server.signal(server.machines(), signal.SIGKILL)
        assert await becomes(tools, one, "error")
        await tools.call("destroy_environment", environment_id=one)
        server.assert_nothing_left()
