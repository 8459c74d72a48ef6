# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Third-party clients, and tools that check servers."""

import json
import os
import re
import subprocess

import pytest

from server import BINARY, CALL_S, ROOT

NODE = ROOT / "target/e2e-node/node_modules"
PREVIOUS = ROOT / "target/e2e-venv-previous/bin/python"
CONFORMANCE = ROOT / "target/debug/examples/conformance"
# The suite takes 3 s on an idle machine.
SUITE_S = 120
# The suite's scenarios for the tasks extension; its default run omits them. A further scenario tests nothing yet.
TASKS = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
]


def node(program, *arguments, **options):
    """Runs a program of an npm package with the tests' own Node."""
    command = [ROOT / "target/e2e-venv/bin/node", NODE / ".bin" / program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SUITE_S, **options)


@pytest.fixture
def fixtures():
    """The URL of waggle's HTTP server with our tools and the suite's fixtures."""
    server = subprocess.Popen([CONFORMANCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        assert server.wait(SUITE_S) == 0


@pytest.mark.outside("tests the HTTP server, which is the same with each back end")
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_the_conformance_suite_finds_no_failure(version, fixtures, tmp_path):
    arguments = ["server", "--url", fixtures, "--suite", "all", "--spec-version", version]
    run = node("conformance", *arguments, cwd=tmp_path)
    passed, failed = re.findall(r"^Total: (\d+) passed, (\d+) failed", run.stdout, re.MULTILINE)[-1]
    assert (run.returncode, failed) == (0, "0"), run.stdout + run.stderr
    # A suite that tested nothing would not fail either.
    assert int(passed) >= 80, run.stdout


@pytest.mark.outside("tests the HTTP server, which is the same with each back end")
def test_the_conformance_suite_finds_no_failure_in_tasks(fixtures, tmp_path):
    for scenario in TASKS:
        run = node("conformance", "server", "--url", fixtures, "--scenario", scenario, cwd=tmp_path)
        found = re.findall(r"^Passed: (\d+)/(\d+), 0 failed, 0 warnings", run.stdout, re.MULTILINE)
        assert run.returncode == 0 and found, run.stdout + run.stderr
        assert all(passed == checks and int(checks) > 0 for passed, checks in found), run.stdout


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_finds_the_tools_and_calls_one(open_server, era):
    common = ["--cli", open_server.url, "--transport", "http", "--protocol-era", era]
    listed = node("mcp-inspector", *common, "--method", "tools/list", "--strict")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert len(json.loads(listed.stdout)["tools"]) == 8
    called = node("mcp-inspector", *common, "--method", "tools/call", "--tool-name", "list_environments")
    assert called.returncode == 0, called.stdout + called.stderr
    assert json.loads(called.stdout)["structuredContent"] == {"count": 0, "environments": []}


def test_the_previous_python_client_completes_the_story(open_server):
    ran = subprocess.run(
        [PREVIOUS, ROOT / "host/tests/e2e/previous/story.py", open_server.url], capture_output=True, text=True, timeout=CALL_S
    )
    assert ran.stdout == "the end\n", ran.stdout + ran.stderr


@pytest.mark.outside("starts the server as a client does")
def test_the_previous_python_client_starts_the_server_itself(serve):
    server = serve()
    settings = {f"WAGGLE_{name}": value for name, value in server.settings.items()}
    ran = subprocess.run(
        [PREVIOUS, ROOT / "host/tests/e2e/previous/story.py", BINARY, "serve", "--stdio"],
        capture_output=True,
        text=True,
        timeout=CALL_S,
        env=os.environ | settings,
    )
    assert ran.stdout == "the end\n", ran.stdout + ran.stderr
    server.assert_nothing_left()
