# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Errors with text of an image: clients get a short reason without it, and the log gets it escaped and cut."""

import hashlib
import json
import re
import subprocess

import pytest

from server import BINARY, CALL_S

FORGED = "2026-01-01T00:00:00Z ERROR waggle: forged"
# What a terminal or a reader must not get: control characters, and marks that reorder or hide text.
HARMFUL = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufe00-\\ufe0f\\ufeff\\ufff0-\\ufffb"
    "\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff]"
)
# The longest error of a client, and the longest line of the log with its fields.
ERROR_CHARS_MAX = 1000
LINE_CHARS_MAX = 20_000


def layout(folder, index=None, operating_system="linux"):
    """Makes an OCI layout of an image without layers; returns its reference."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(kind, content):
        text = json.dumps(content).encode()
        name = hashlib.sha256(text).hexdigest()
        (blobs / name).write_bytes(text)
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json", "digest": f"sha256:{name}", "size": len(text)}

    rootfs = {"type": "layers", "diff_ids": []}
    config = blob("config", {"architecture": "amd64", "os": operating_system, "config": {}, "rootfs": rootfs})
    manifest = blob("manifest", {"schemaVersion": 2, "config": config, "layers": []})
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_text(json.dumps(index or {"schemaVersion": 2, "manifests": [manifest]}))
    return f"oci:{folder}"


@pytest.mark.outside("the image is a file of this machine")
async def test_text_of_an_image_and_paths_of_the_host_reach_no_client_and_forge_no_log_line(serve, tmp_path):
    images = {
        "shell": layout(tmp_path / "forged", operating_system=f"linux\n{FORGED}\x1b[2J\u202e\U000e0041"),
        "python": layout(tmp_path / "large", index={"schemaVersion": "AAAA" + "://" * ((4 << 20) // 3 - 100), "manifests": []}),
        "node": layout(tmp_path / "lost"),
    }
    server = serve(**{f"IMAGE_{name.upper()}": image for name, image in images.items()}).start()
    (tmp_path / "lost/oci-layout").unlink()
    reasons = {"shell": "is invalid, damaged", "python": "is invalid, damaged", "node": "does not exist|is invalid, damaged"}
    async with server.client() as tools:
        for language, reason in reasons.items():
            failed = await tools.raw("create_environment", language=language)
            error = failed.meta["waggle/error"]
            assert failed.is_error and error["code"] == "start_failed", failed
            assert re.search(reason, error["message"]) and "server's log" in error["message"], error
            (environment,) = re.findall(r"[0-9a-f-]{36}", error["message"])
            _, log = server.status(f"/environments/{environment}/log")
            for text in [failed.content[0].text, json.dumps(failed.meta), json.dumps(log)]:
                assert FORGED not in text and "AAAA" not in text and len(text) < ERROR_CHARS_MAX, text
                assert not any(str(path) in text for path in (tmp_path, server.folder)), text
            # The log has the cause, under the same id.
            assert f"failed to create environment {environment}" in server.output()
    log = server.output()
    assert f"linux\\\\u{{a}}{FORGED}" in log and str(tmp_path / "large") in log
    assert not HARMFUL.search(log)
    assert not any(line.startswith(FORGED) or len(line) > LINE_CHARS_MAX for line in log.splitlines())

    # On the command line, the same text is one line.
    for arguments in (["image", "pull", images["shell"]], ["run", "shell", "--", "true"], ["image", "pull", images["python"]]):
        ran = subprocess.run(
            [BINARY, *arguments], env=server.variables(), capture_output=True, text=True, timeout=CALL_S, check=False
        )
        assert ran.returncode != 0 and not HARMFUL.search(ran.stderr), ran
        assert not any(line.startswith(FORGED) for line in ran.stderr.splitlines()), ran.stderr
        assert len(ran.stderr) < 3 * ERROR_CHARS_MAX, ran.stderr


@pytest.mark.outside("renames a folder of this machine")
async def test_fault_of_the_data_folder_shows_clients_no_path(serve):
    server = serve().start()
    machines, away = server.data / "machines", server.data / "away"
    machines.rename(away)
    async with server.client() as tools:
        failed = await tools.raw("create_environment", language="shell")
        error = failed.meta["waggle/error"]
        assert (failed.is_error, error["code"]) == (True, "start_failed")
        assert "the server failed to start a machine" in error["message"], error
        (environment,) = re.findall(r"[0-9a-f-]{36}", error["message"])
        _, log = server.status(f"/environments/{environment}/log")
        for text in [failed.content[0].text, json.dumps(failed.meta), json.dumps(log)]:
            assert str(server.folder) not in text, text
    assert str(machines) in server.output()
    away.rename(machines)
