# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The snippets and bundles that users copy are valid for their clients."""

import hashlib
import json
import os
import re
import subprocess
import tomllib
import zipfile

import pytest

from server import ROOT

pytestmark = pytest.mark.outside("reads files of the repository")

# The command with which clients start a server.
COMMAND = {"command": "waggle", "args": ["serve", "--stdio"]}
URL = "http://127.0.0.1:8080/mcp"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def servers(configuration):
    """waggle's entry in a client's configuration. Clients name the table differently."""
    [table] = [configuration[name] for name in ("mcpServers", "servers", "mcp_servers") if name in configuration]
    return table["waggle"]


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md"])
def test_every_snippet_has_the_servers_url_or_command(page):
    found = [servers(json.loads(text)) for text in blocks(page, "json")]
    found += [servers(tomllib.loads(text)) for text in blocks(page, "toml")]
    assert found
    for snippet in found:
        assert snippet.get("url") == URL or {name: snippet[name] for name in COMMAND} == COMMAND, snippet


def test_the_pages_programs_are_the_examples_that_tests_run():
    folder = ROOT / "host/tests/e2e/clients/examples"
    for language, programs in [
        ("python", ["langchain_agent.py", "pydantic_ai_agent.py", "openai_agents_agent.py"]),
        ("js", ["ai-sdk.mjs"]),
    ]:
        texts = [(folder / program).read_text().split("\n", 2)[2] for program in programs]
        assert blocks("docs/clients.md", language) == texts


def test_the_example_configuration_has_the_servers_url():
    example = servers(json.loads((ROOT / "docs/examples/mcp.json").read_text()))
    assert (example["type"], URL in example["url"]) == ("http", True)


def test_server_json_describes_this_version():
    described = json.loads((ROOT / "server.json").read_text())
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert described["version"] == workspace["version"]
    # The rules of server.json's schema for these fields.
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", described["name"])
    assert 1 <= len(described["description"]) <= 100 and 1 <= len(described["title"]) <= 100


def test_the_bundle_contains_the_program_and_its_start_command(tmp_path):
    program = tmp_path / "waggle"
    program.write_bytes(b"#!/bin/sh\n")
    url = "https://waggle.example/mcp/waggle.mcpb"
    environment = os.environ | {"WAGGLE_BINARY": str(program)}
    subprocess.run([ROOT / "host/bundle", url], check=True, env=environment, stdout=subprocess.DEVNULL)
    bundle = ROOT / "target/mcpb/waggle.mcpb"
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert archive.getinfo("server/waggle").external_attr >> 16 & 0o777 == 0o755
        assert archive.read(manifest["server"]["entry_point"]) == program.read_bytes()
    # The format's official tool unpacks and validates it.
    tool = [ROOT / "target/e2e-venv/bin/node", ROOT / "target/e2e-node/node_modules/.bin/mcpb"]
    subprocess.run([*tool, "unpack", bundle, tmp_path / "unpacked"], check=True, stdout=subprocess.DEVNULL)
    judged = subprocess.run([*tool, "validate", tmp_path / "unpacked"], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    start = manifest["server"]["mcp_config"]
    assert (start["command"], start["args"]) == ("${__dirname}/server/waggle", ["serve", "--stdio"])
    assert [tool["name"] for tool in manifest["tools"]][:2] == ["create_environment", "destroy_environment"]
    known = (ROOT / "docs/configuration.md").read_text()
    assert all(f"`{name}`" in known for name in start["env"])
    [package] = json.loads((ROOT / "target/mcpb/server.json").read_text())["packages"]
    assert (package["identifier"], package["fileSha256"]) == (url, hashlib.sha256(bundle.read_bytes()).hexdigest())
