# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The official, unmodified TypeScript client takes a user's first steps, and uses tasks."""

import os
import subprocess

import pytest

from server import CALL_S, ROOT


def run_story(story, *arguments):
    # Node resolves modules relative to the script.
    script = ROOT / "target/e2e-node" / story
    script.write_bytes((ROOT / "host/tests/e2e/typescript" / story).read_bytes())
    node = ROOT / "target/e2e-venv/bin/node"
    ran = subprocess.run(
        [node, script, *arguments], capture_output=True, text=True, timeout=CALL_S, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "the end"


@pytest.mark.parametrize("negotiation", ["auto", "legacy", "previous"])
def test_the_typescript_client_completes_the_story(open_server, negotiation):
    run_story("story.mjs", open_server.url, negotiation)
    open_server.assert_nothing_left()


@pytest.mark.parametrize("generation", ["legacy", "previous"])
def test_the_typescript_client_gets_a_result_whose_call_ended_while_it_was_away(open_server, generation):
    run_story("resumption.mjs", open_server.url, generation)
    open_server.assert_nothing_left()


def test_the_typescript_client_follows_tasks_and_cancels_one(open_server):
    run_story("tasks.mjs", open_server.url)
    open_server.assert_nothing_left()
