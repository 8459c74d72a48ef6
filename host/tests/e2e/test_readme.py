# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The README's example works."""

import ast
import re
import subprocess
import sys

import pytest

from server import CALL_S, ROOT


@pytest.mark.smoke
def test_the_example_works(open_server, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    address = "http://127.0.0.1:8080/mcp"
    assert address in code
    example = tmp_path / "example.py"
    example.write_text(code.replace(address, open_server.url))
    ran = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=CALL_S)
    assert ran.returncode == 0, ran.stderr
    result = ast.literal_eval(ran.stdout)
    assert (result["exit_code"], result["stdout"]) == (0, "42\n")
    open_server.assert_nothing_left()
