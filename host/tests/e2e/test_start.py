# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Starts that must fail and say why; the version, the health pages, and the log of a call's stages."""

import re
import socket
import subprocess

import pytest

from server import BINARY

# Maximum time of a start that must fail. Such a start only checks its settings.
REFUSED_S = 30


def refused(server):
    """The log of a server that must exit with a failure."""
    server.launch()
    assert server.process.wait(REFUSED_S) != 0
    server.process = None
    return server.output()


@pytest.mark.outside("reads settings, which are the same for each back end")
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("LISTEN_ADDR", "nowhere"),
        ("MAX_ENVIRONMENTS", "many"),
        ("MAX_ENVIRONMENTS", "-1"),
        ("DEFAULT_MEMORY_MB", "lots"),
        ("DEFAULT_MEMORY_MB", "1"),
        ("DEFAULT_CPUS", "17"),
        ("KERNEL_ARGS", "quiet -- sh"),
        ("MAX_EXEC_TIMEOUT", "five minutes"),
        ("BACKEND", "paper"),
        ("IMAGE_SHELL", "not an image"),
    ],
)
def test_an_invalid_setting_stops_the_start(serve, setting, value):
    output = refused(serve(**{setting: value}))
    assert setting in output or setting.lower().replace("_", "-") in output


@pytest.mark.outside("takes a port of this machine")
def test_a_taken_port_stops_the_start(serve):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        output = refused(serve(LISTEN_ADDR=address))
    assert address in output
    assert "in use" in output
    assert "--listen-addr or WAGGLE_LISTEN_ADDR" in output


@pytest.mark.outside("runs the program here")
def test_the_version_says_what_is_inside():
    printed = subprocess.run([BINARY, "version"], capture_output=True, text=True, check=True).stdout
    # This build contains the agent and no firmware.
    assert re.search(r"^waggle \d+\.\d+\.\d+ \(commit [0-9a-f]{12}, built \d{4}-\d\d-\d\d\)$", printed, re.MULTILINE)
    assert re.search(r"^guest agent   \d+ bytes, protocol \d+, sha256 [0-9a-f]{64}$", printed, re.MULTILINE)
    assert "firmware      not in this build" in printed


def test_the_health_pages_answer(server):
    assert server.status("/healthz") == (200, {"status": "ok"})
    status, body = server.status("/readyz")
    assert (status, body["status"]) == (200, "ok")
    assert body["checks"]


@pytest.mark.outside("sets the server's RUST_LOG")
async def test_the_stages_of_a_call_are_logged_on_request(serve, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "info,waggle::stages=debug")
    server = serve().start()
    async with server.client() as tools, tools.environment("shell") as made:
        await tools.call("execute", environment_id=made["environment_id"], code="true")
    # The log lines at the ends of spans, with durations.
    ends = [line for line in server.output().splitlines() if " close " in line and "time.idle=" in line]
    for stage in ["request", "request:body", "call{tool=execute}", "begin", 'guest{operation="run the code"}', "result"]:
        assert any(stage in line for line in ends), (stage, ends)
    # Without this setting, the stages are not logged.
    monkeypatch.delenv("RUST_LOG")
    quiet = serve().start()
    async with quiet.client() as tools:
        await tools.call("list_environments")
    assert "time.idle=" not in quiet.output()
