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


async def test_each_process_of_a_machine_is_confined(server):
    async with server.client() as tools, tools.environment("shell"):
        (machine,), helpers, (runner,) = server.machines(), server.helpers(), server.runners()
        around = [namespaces(server, server.process.pid)]
        assert status(server, runner)["NoNewPrivs"].strip() == "1"
        assert namespaces(server, runner)["user"] != around[0]["user"]
        for pid in [machine, *helpers]:
            found = status(server, pid)
            assert found["NoNewPrivs"].strip() == "1"
            assert found["Seccomp"].strip() == "2"
            assert {found[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
            own = namespaces(server, pid)
            for name in NAMESPACES:
                # All share the runner's user namespace, in which none of them has capabilities.
                others = around if name != "user" else around[:1]
                assert own[name] and own[name] not in [other[name] for other in others], name
            around.append(own)
            assert server.shell(f"cat /proc/{pid}/net/dev").count(":") == 1
            limits = server.shell(f"cat /proc/{pid}/limits")
            assert "Max core file size        0 " in limits
            # The process sees only its machine's folder; the VMM also sees its prepared image.
            hidden = ["proc", "sys", "etc/passwd", "etc/shadow", str(server.data).lstrip("/") + "/images"]
            assert server.shell(f"cd /proc/{pid}/root && ls -d {' '.join(hidden)} 2>/dev/null") == ""
            images = server.shell(f"find /proc/{pid}/root/ -xdev -name '*.erofs' | wc -l").strip()
            assert images == ("1" if pid == machine else "0")
            devices = set(server.shell(f"ls /proc/{pid}/root/dev").split())
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
