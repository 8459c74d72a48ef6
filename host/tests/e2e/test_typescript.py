# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The official, unmodified TypeScript client runs the same story, and one about tasks."""

import os
import subprocess

import pytest

from server import CALL_S, ROOT


def tell(story, *arguments):
    # Node resolves modules relative to the script.
    script = ROOT / "target/e2e-node" / story
    script.write_bytes((ROOT / "host/tests/e2e/typescript" / story).read_bytes())
    node = ROOT / "target/e2e-venv/bin/node"
    told = subprocess.run(
        [node, script, *arguments], capture_output=True, text=True, timeout=CALL_S, env=dict(os.environ)
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == "the end"


@pytest.mark.parametrize("negotiation", ["auto", "legacy", "previous"])
def test_the_typescript_client_tells_the_story(open_server, negotiation):
    tell("story.mjs", open_server.url, negotiation)
    open_server.assert_nothing_left()


def test_the_typescript_client_follows_tasks_and_cancels_one(open_server):
    tell("tasks.mjs", open_server.url)
    open_server.assert_nothing_left()
