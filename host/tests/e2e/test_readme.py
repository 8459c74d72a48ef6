# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The README's example does what the README says."""

import ast
import re
import subprocess
import sys

from server import CALL_S, ROOT


def test_the_example_works(server, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    address = "http://127.0.0.1:8080/mcp"
    assert address in code
    example = tmp_path / "example.py"
    example.write_text(code.replace(address, server.url))
    ran = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=CALL_S)
    assert ran.returncode == 0, ran.stderr
    result = ast.literal_eval(ran.stdout)
    assert (result["exit_code"], result["stdout"]) == (0, "42\n")
    server.assert_nothing_left()
