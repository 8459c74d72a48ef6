# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests. What a test needs and the machine lacks is an error that names the command, never a skip."""

import os
import shutil

import pytest

from server import BINARY, ROOT, Server

NEEDED = [
    (BINARY, "./taskw e2e"),
    (ROOT / "target/kernel/vmlinuz", "./taskw kernel"),
    (ROOT / "target/images/python/index.json", "./taskw images"),
    (ROOT / "target/images/node/index.json", "./taskw images"),
    (ROOT / "target/images/shell/index.json", "./taskw images"),
    (ROOT / "target/images/foreign/index.json", "./taskw image-foreign"),
    (ROOT / "target/e2e-node/installed.json", "host/tests/e2e/prepare"),
]


def pytest_sessionstart(session):
    if session.config.option.collectonly:
        return
    missing = [f"{path} is missing: run {command}" for path, command in NEEDED if not path.exists()]
    if not shutil.which("vhost-device-vsock"):
        missing.append("vhost-device-vsock is missing: run ./taskw vsock-device")
    if not shutil.which("qemu-system-x86_64"):
        missing.append("qemu-system-x86_64 is missing: run ./setup machines")
    if missing:
        raise pytest.UsageError("\n".join(missing))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def serve(request):
    """Makes servers; at the end stops what still runs and looks for what was left."""
    servers = []

    def make(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield make
    for server in servers:
        try:
            server.stop()
            server.assert_nothing_left()
        except BaseException:
            print(f"--- log of the server on port {server.port}\n{server.output()}")
            raise
        finally:
            for pid, _ in server.processes():
                os.kill(pid, 9)
            server.remove()


@pytest.fixture
def server(serve):
    """A server with the project's own images, ready."""
    return serve().start()
