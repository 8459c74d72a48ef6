# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The data folder has a version: older folders are migrated, and newer ones are refused and stay as they are."""

import json
import pathlib
import subprocess

import pytest

from server import BINARY, CALL_S
from test_start import refused

pytestmark = pytest.mark.outside("changes the server's data folder")


def data_folder(server):
    """The doctor's check of the data folder."""
    ran = subprocess.run(
        [BINARY, "doctor", "--json", "--no-boot"], env=server.variables(), capture_output=True, text=True, timeout=CALL_S, check=False
    )
    return next(check for check in json.loads(ran.stdout)["checks"] if check["name"] == "data folder")


def test_a_data_folder_of_a_newer_program_is_refused_and_an_older_one_is_migrated(serve):
    server = serve().start()
    data = pathlib.Path(server.data)
    version = data / "version"
    own = json.loads(version.read_text())
    assert own["version"] == 1
    assert version.stat().st_mode & 0o777 == 0o600
    server.stop()

    newer = {"version": own["version"] + 1, "program": "99.1", "more": True}
    version.write_text(json.dumps(newer))
    before = sorted(path.name for path in data.iterdir())
    output = refused(server)
    check = data_folder(server)
    assert check["state"] == "broken"
    for word in [str(data), "waggle 99.1", "WAGGLE_DATA_DIR", "docs/upgrading.md"]:
        assert word in output and word in check["found"]
    ran = subprocess.run(
        [BINARY, "run", "shell"], env=server.variables(), input="echo", capture_output=True, text=True, timeout=CALL_S, check=False
    )
    assert (ran.returncode, "waggle 99.1" in ran.stderr) == (1, True), ran
    assert json.loads(version.read_text()) == newer
    assert sorted(path.name for path in data.iterdir()) == before

    version.write_text("{")
    assert "remove the file" in refused(server)

    # A folder of a program from before versions has no file.
    version.unlink()
    server.start()
    assert json.loads(version.read_text()) == own
