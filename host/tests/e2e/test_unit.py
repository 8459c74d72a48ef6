# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The package's unit under a real systemd: it starts, is confined, serves, restarts, and stops."""

import re
import time

import pytest

from server import STOP_S, Server
from systemd_host import PACKAGES, PORT, TOKEN, SystemdHost

pytestmark = [
    pytest.mark.outside("boots a separate host"),
    pytest.mark.packages,
    pytest.mark.xdist_group("unit"),
    # Making and booting the host takes most of the time.
    pytest.mark.timeout(600),
]

# Maximum time of a start by systemctl, in which the server probes emulated KVM and unpacks the firmware.
START_S = 90
# The score of `systemd-analyze security`: 0 is fully confined, 10 unconfined, 5 is MEDIUM.
EXPOSURE_MAX = 4.9

PROCESSES = """
for place in /proc/[0-9]*; do
  if [ "$(stat -c %U $place 2>/dev/null)" = waggle ]; then echo "${place#/proc/} $(cat $place/comm)"; fi
done
"""


@pytest.fixture(scope="module")
def host():
    package = next(PACKAGES.glob("waggle_*_amd64.deb"), None)
    if package is None:
        pytest.fail("target/packages has no package: run ./taskw deb")
    host = SystemdHost(package)
    try:
        yield host
    finally:
        print(f"--- console of the host\n{host.output()}")
        host.stop()


@pytest.fixture
def unit(host):
    """The unit's server, started by systemctl as an operator would."""
    server = Server()
    server.port, server.token = host.ports[PORT], TOKEN
    host.shell("systemctl reset-failed waggle; systemctl start waggle", START_S)
    assert shown(host, "ActiveState") == "active", journal(host)
    yield server
    host.shell("systemctl stop waggle", START_S)
    server.remove()


def shown(host, name):
    return host.shell(f"systemctl show waggle --value --property {name}").strip()


def journal(host):
    return host.shell("journalctl --no-pager --unit waggle")


def processes(host):
    """The processes of the unit's user, as lines of id and name."""
    return host.shell(PROCESSES).splitlines()


def test_systemd_accepts_the_unit(host):
    assert host.shell("systemd-analyze verify /lib/systemd/system/waggle.service").strip() == ""
    analysed = host.shell("systemd-analyze security --no-pager waggle.service | tail -n 1")
    exposure = float(re.search(r": ([0-9.]+) ", analysed)[1])
    assert exposure <= EXPOSURE_MAX, analysed


async def test_the_unit_is_ready_confined_and_runs_a_machine(host, unit):
    # systemctl has returned, so the server is ready.
    assert unit.status("/readyz")[0] == 200, journal(host)
    assert "serving MCP" in shown(host, "StatusText")
    pid = shown(host, "MainPID")
    status = dict(line.split(":\t", 1) for line in host.shell(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] == host.shell("id -u waggle").strip() != "0"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[kind], 16) for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]} == {0}
    # The server owns its folders and cannot change the rest of the system.
    assert host.shell("stat -c '%U %a' /var/lib/waggle /var/cache/waggle").split("\n")[:2] == ["waggle 700"] * 2
    refused = host.shell(f"nsenter --target {pid} --mount -- sh -c 'touch /usr/bin/x; ls -A /root /home'")
    assert "Read-only file system" in refused, refused
    async with unit.client() as tools, tools.environment("shell") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code="echo from a machine; id -u")
        assert ran["stdout"] == "from a machine\n1000\n"
    told = journal(host)
    assert "namespaces" not in told, told
    # The server tries nothing that the unit forbids.
    assert not re.search(r"seccomp|type=1326", host.shell("dmesg")), host.shell("dmesg")


def test_a_reload_reads_the_tokens_again_without_a_restart(host, unit):
    before = shown(host, "MainPID")
    tokens = "/etc/waggle/tokens"
    kept = host.shell(f"cat {tokens}")
    page = f"http://127.0.0.1:{PORT}/environments/x/log"
    ask = f"busybox wget -q -O - --header 'Authorization: Bearer another-token-than-before' {page} 2>&1"
    assert "401" in host.shell(ask)
    try:
        host.shell(f"echo other another-token-than-before >>{tokens} && systemctl reload waggle")
        deadline = time.monotonic() + START_S
        # 400 shows that the server accepts the token, because it looks for the environment, which does not exist.
        while "400" not in (said := host.shell(ask)):
            assert time.monotonic() < deadline, (said, journal(host))
            time.sleep(0.2)
        assert shown(host, "MainPID") == before
    finally:
        host.shell(f"echo '{kept.strip()}' >{tokens}")


async def test_a_server_that_is_killed_comes_back_and_leaves_no_machine(host, unit):
    async with unit.client() as tools:
        await tools.call("create_environment", language="shell")
        before = shown(host, "MainPID")
        assert len(processes(host)) > 1
        host.shell(f"kill -KILL {before}")
    deadline = time.monotonic() + START_S
    while (now := shown(host, "MainPID")) in (before, "0") or unit.status("/readyz")[0] != 200:
        assert time.monotonic() < deadline, journal(host)
        time.sleep(0.5)
    assert shown(host, "NRestarts") == "1"
    assert [line.split()[0] for line in processes(host)] == [now]


def test_a_stop_ends_everything_in_time(host, unit):
    began = time.monotonic()
    host.shell("systemctl stop waggle", START_S)
    assert time.monotonic() - began < STOP_S
    assert (shown(host, "ActiveState"), shown(host, "Result")) == ("inactive", "success")
    assert processes(host) == []


def test_a_failed_start_says_why(host):
    drop_in = "/run/systemd/system/waggle.service.d"
    lines = "[Service]\\nEnvironment=WAGGLE_MAX_ENVIRONMENTS=none\\n"
    host.shell(f"mkdir -p {drop_in} && printf '{lines}' >{drop_in}/wrong.conf && systemctl daemon-reload")
    try:
        told = host.shell("systemctl start waggle || echo refused", START_S)
        assert "refused" in told
        # systemd does not restart the unit.
        assert shown(host, "ActiveState") == "failed"
        assert "--max-environments" in journal(host)
    finally:
        host.shell(f"rm -r {drop_in} && systemctl daemon-reload && systemctl reset-failed waggle")
