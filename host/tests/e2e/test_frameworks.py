# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Some clients of the matrix (docs/clients.md), and the examples of that page. `./taskw e2e-clients` runs all clients."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from server import CALL_S

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "clients"))

import matrix  # noqa: E402
from driver import FOLDER, INSTALLED, ROOT  # noqa: E402
from examples.provider import provider  # noqa: E402

# The checks that take a few seconds each.
QUICK = {
    "connect",
    "create",
    "execute",
    "text",
    "picture",
    "binary",
    "tool error",
    "time-out",
    "failed start",
    "1 MB output",
}
CLIENTS = ["mcp-1.22", "mcp-2.3", "sdk-1.32", "client-2.4", "langchain", "pydantic-ai"]
EXAMPLES = [
    ("langchain", "langchain_agent.py", "openai:gpt-5"),
    ("pydantic-ai", "pydantic_ai_agent.py", "openai:gpt-5"),
    ("openai-agents", "openai_agents_agent.py", "gpt-5"),
]

pytestmark = pytest.mark.outside("runs clients against a server on this machine")


@pytest.fixture(scope="module")
def served():
    server = matrix.Served().start()
    try:
        yield server
        server.stop()
        server.assert_nothing_left()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def guarded():
    server = matrix.guarded_server().start()
    try:
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_passes_the_quick_checks(served, client):
    outcomes = matrix.run(client, served, only=QUICK)
    assert outcomes.keys() == QUICK
    assert {name: outcome for name, outcome in outcomes.items() if outcome is not None} == {}


def test_gemini_schemas_can_be_made_of_all_tools(served):
    assert matrix.run("google-genai", served, only={"connect"}) == {"connect": None}


@pytest.mark.parametrize(("client", "program", "model"), EXAMPLES)
def test_an_example_of_the_documentation_runs(guarded, client, program, model):
    with provider("print(sum(range(1000)))") as url:
        ran = subprocess.run(
            [INSTALLED / client / "bin/python", FOLDER / "examples" / program, model, "What is the sum?"],
            capture_output=True,
            text=True,
            timeout=CALL_S,
            env=os.environ
            | {
                "WAGGLE_URL": guarded.url,
                "WAGGLE_TOKEN": matrix.TOKEN,
                "OPENAI_BASE_URL": url,
                "OPENAI_API_KEY": "none",
                "OPENAI_AGENTS_DISABLE_TRACING": "1",
            },
        )
    assert "499500" in ran.stdout, ran.stdout + ran.stderr


def test_the_example_for_the_ai_sdk_runs(guarded):
    # Node resolves modules relative to the script.
    for program in ("ai-sdk.mjs", "ai-sdk-model.mjs"):
        shutil.copy(FOLDER / "examples" / program, INSTALLED / "ai-sdk")
    ran = subprocess.run(
        [ROOT / "target/e2e-venv/bin/node", "--import", "./ai-sdk-model.mjs", "ai-sdk.mjs"],
        cwd=INSTALLED / "ai-sdk",
        capture_output=True,
        text=True,
        timeout=CALL_S,
        env=os.environ | {"WAGGLE_URL": guarded.url, "WAGGLE_TOKEN": matrix.TOKEN},
    )
    assert "168" in ran.stdout, ran.stdout + ran.stderr
