# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that start servers. If a requirement is missing, the run fails and names the command that makes it."""

import json
import shutil
import sys

import pytest

from krun_server import KrunServer
from nested import NestedHost
from nested_server import NestedServer
from peers import Peers
from server import BINARY, ROOT, Server, kvm_fault, run_script

# Requirements of the tests, and the command that makes each.
NEEDED = [
    (BINARY, "./taskw e2e"),
    (ROOT / "target/firmware/NOTICE", "./taskw firmware"),
    (ROOT / "target/images/python/index.json", "./taskw images"),
    (ROOT / "target/images/node/index.json", "./taskw images"),
    (ROOT / "target/images/shell/index.json", "./taskw images"),
    (ROOT / "target/images/foreign/index.json", "./taskw image-foreign"),
    (ROOT / "target/images/musl/index.json", "./taskw image-foreign"),
    (ROOT / "target/images/rpm/index.json", "./taskw image-rpm"),
    (ROOT / "target/images/suite/index.json", "./taskw image-suite"),
    (ROOT / "target/e2e-node/installed.json", "host/tests/e2e/prepare"),
    (ROOT / "target/e2e-venv-previous/requirements.txt", "host/tests/e2e/prepare"),
    (ROOT / "target/clients/openai-agents/installed", "host/tests/e2e/prepare"),
]


def pytest_addoption(parser):
    parser.addoption(
        "--back-end",
        choices=["qemu", "krun", "msb"],
        default="qemu",
        help="the back end to test; krun and msb run in a nested host with emulated KVM unless --kvm is given",
    )
    parser.addoption("--long", action="store_true", help="also run the tests that take too long for each change")
    parser.addoption("--python", action="store_true", help="also run those of CPython's tests that take minutes")
    parser.addoption("--kvm", action="store_true", help="use this machine's KVM; fail if KVM runs no guest")


def is_nested(config):
    """Whether the servers under test run in the nested host."""
    return config.option.back_end != "qemu" and not config.option.kvm


def pytest_configure(config):
    config.addinivalue_line("markers", "smoke: ./taskw test runs these tests with libkrun, too")
    config.addinivalue_line("markers", "packages: needs the package that ./taskw deb makes")
    config.addinivalue_line("markers", "index: takes minutes, as it downloads packages from this machine's pip index")
    config.addinivalue_line("markers", "long: takes long, and a shorter test shows most of it; only ./taskw e2e-long runs it")
    config.addinivalue_line("markers", "python: takes minutes, so only ./taskw e2e-python runs it")
    config.addinivalue_line("markers", "nested: changes settings of the host, so it runs only in a nested host")
    config.addinivalue_line("markers", "outside(reason): is skipped with libkrun and msb_krun, for this reason")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("long") and not config.option.long:
            item.add_marker(pytest.mark.skip(reason="takes long: ./taskw e2e-long runs this test"))
        if item.get_closest_marker("python") and not config.option.python:
            item.add_marker(pytest.mark.skip(reason="takes minutes: ./taskw e2e-python runs this test"))
        if item.get_closest_marker("nested") and not is_nested(config):
            item.add_marker(pytest.mark.skip(reason="changes settings of the host, so it runs only in a nested host"))
        if config.option.back_end != "qemu":
            for mark in item.iter_markers("outside"):
                item.add_marker(pytest.mark.skip(reason=mark.args[0]))


def pytest_sessionstart(session):
    if session.config.option.collectonly:
        return
    missing = [f"{path} is missing: run {command}" for path, command in NEEDED if not path.exists()]
    if not shutil.which("qemu-system-x86_64"):
        missing.append("qemu-system-x86_64 is missing: run ./setup machines")
    if not missing and session.config.option.kvm and (fault := kvm_fault()):
        missing.append(f"--kvm: KVM runs no guest on this machine: {fault}")
    if missing:
        raise pytest.UsageError("\n".join(missing))


@pytest.fixture(scope="session")
def nested_host(request):
    """The nested host, started once, if servers run there; else None."""
    if not is_nested(request.config):
        yield None
        return
    host = NestedHost(BINARY, ["python", "node", "shell", "foreign"], ROOT / "target/e2e-image-cache", with_python=True)
    try:
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="session")
def make_server(request, nested_host):
    """Makes a server, on this machine or in the nested host."""
    back_end = request.config.option.back_end
    if nested_host:
        return lambda **settings: NestedServer(nested_host, **{"BACKEND": back_end} | settings)
    return Server if back_end == "qemu" else lambda **settings: KrunServer(**{"BACKEND": back_end} | settings)


@pytest.fixture
def peers(nested_host):
    """Makes servers that guests can connect to, on the machine that waggle runs on."""
    made = Peers(nested_host.shell, nested_host.python, "/peers.py") if nested_host else Peers(run_script)
    yield made
    made.stop()


@pytest.fixture
def inject(nested_host):
    """Executes system calls in a VMM, and returns their results; see inject.py."""
    shell, command = run_script, f"{sys.executable} {ROOT / 'host/tests/e2e/inject.py'}"
    if nested_host:
        shell, command = nested_host.shell, f"{nested_host.python} /inject.py"

    def execute(vmm, runner):
        output = shell(f"{command} {vmm} {runner} 2>&1")
        assert output.startswith("{"), output
        return json.loads(output)

    return execute


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def serve(make_server):
    """Makes servers; at the end, stops the servers that still run and checks that nothing is left."""
    servers = []

    def make(**settings):
        servers.append(make_server(**settings))
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
            server.remove()


@pytest.fixture
def server(serve):
    """A ready server with the project's own images."""
    return serve().start()


@pytest.fixture
def open_server(serve, nested_host):
    """A ready server, like `server`, for clients without a token."""
    made = serve()
    if nested_host:
        made.open()
    return made.start()
