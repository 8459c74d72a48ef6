# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The official TypeScript client, unmodified, tells the same story."""

import os
import subprocess

import pytest

from server import CALL_S, ROOT


@pytest.mark.parametrize("negotiation", ["auto", "legacy", "previous"])
def test_the_typescript_client_tells_the_story(server, negotiation):
    here = ROOT / "host/tests/e2e/typescript/story.mjs"
    # Modules are found from where the script lies.
    script = ROOT / "target/e2e-node/story.mjs"
    script.write_bytes(here.read_bytes())
    node = ROOT / "target/e2e-venv/bin/node"
    told = subprocess.run(
        [node, script, server.url, negotiation], capture_output=True, text=True, timeout=CALL_S, env=dict(os.environ)
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == "the end"
    server.assert_nothing_left()
