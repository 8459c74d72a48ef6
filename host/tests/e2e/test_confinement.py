# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The confinement of a machine's processes, inspected from outside."""

import pytest

NAMESPACES = ["user", "mnt", "pid", "ipc", "net", "uts", "cgroup"]


def status(server, pid):
    lines = server.shell(f"cat /proc/{pid}/status").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def namespaces(server, pid):
    return {name: server.shell(f"readlink /proc/{pid}/ns/{name}").strip() for name in NAMESPACES}


async def test_the_processes_of_a_machine_are_confined(server):
    async with server.client() as tools, tools.environment("shell"):
        (machine,), (runner,) = server.machines(), server.runners()
        outside = namespaces(server, server.process.pid)
        between = namespaces(server, runner)
        assert status(server, runner)["NoNewPrivs"].strip() == "1"
        assert between["user"] != outside["user"]
        found = status(server, machine)
        assert found["NoNewPrivs"].strip() == "1"
        assert found["Seccomp"].strip() == "2"
        assert {found[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        own = namespaces(server, machine)
        # It shares the runner's user namespace, in which it has no capabilities.
        assert own["user"] == between["user"]
        for name in NAMESPACES:
            assert own[name] and own[name] != outside[name], name
            assert name == "user" or own[name] != between[name], name
        assert server.shell(f"cat /proc/{machine}/net/dev").count(":") == 1
        limits = server.shell(f"cat /proc/{machine}/limits")
        assert "Max core file size        0 " in limits
        # The process sees only its machine's folder and its prepared image.
        hidden = ["proc", "sys", "etc/passwd", "etc/shadow", str(server.data).lstrip("/") + "/images"]
        assert server.shell(f"cd /proc/{machine}/root && ls -d {' '.join(hidden)} 2>/dev/null") == ""
        assert server.shell(f"find /proc/{machine}/root/ -xdev -name '*.erofs' | wc -l").strip() == "1"
        devices = set(server.shell(f"ls /proc/{machine}/root/dev").split())
        assert devices <= {"null", "urandom", "kvm"}, devices


@pytest.mark.nested
async def test_a_host_without_user_namespaces_still_runs_machines(serve):
    setting = "/proc/sys/user/max_user_namespaces"
    server = serve()
    before = server.shell(f"cat {setting}; echo 0 >{setting}").strip()
    try:
        server.start()
        assert "machines share the server's namespaces" in server.output()
        async with server.client() as tools, tools.environment("shell") as made:
            ran = await tools.call("execute", environment_id=made["environment_id"], code="echo up")
            assert ran["stdout"] == "up\n"
            (machine,) = server.machines()
            found = status(server, machine)
            assert (found["NoNewPrivs"].strip(), found["Seccomp"].strip()) == ("1", "2")
    finally:
        server.shell(f"echo {before} >{setting}")
