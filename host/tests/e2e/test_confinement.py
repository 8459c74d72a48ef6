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


def assert_taken_over_vmm_is_refused(tried, file_of_the_host, memory_of_its_parent):
    """Checks what a VMM that a guest has taken over could do."""
    assert tried.pop("read a file of the host") == file_of_the_host
    assert tried.pop("read the memory of its parent") == memory_of_its_parent
    assert tried.pop("reserve 64 GiB of memory") == "ENOMEM"
    assert tried.pop("learn its own process id") == "done"
    assert tried and set(tried.values()) <= {"EPERM", "ENOSYS"}, tried


@pytest.mark.smoke
async def test_the_processes_of_a_machine_are_confined(server, inject):
    async with server.client() as tools, tools.environment("shell") as made:
        (machine,), (runner,) = server.machines(), server.runners()
        outside = namespaces(server, server.process.pid)
        between = namespaces(server, runner)
        assert status(server, runner)["NoNewPrivs"].strip() == "1"
        assert between["user"] != outside["user"]
        found = status(server, machine)
        assert found["NoNewPrivs"].strip() == "1"
        assert {found[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        own = namespaces(server, machine)
        # It shares the runner's user namespace, in which it has no capabilities.
        assert own["user"] == between["user"]
        for name in NAMESPACES:
            assert own[name] and own[name] != outside[name], name
            assert name == "user" or own[name] != between[name], name
        assert server.shell(f"cat /proc/{machine}/net/dev").count(":") == 1
        limits = server.shell(f"cat /proc/{machine}/limits")
        # No file may be larger than the disk, by default 4 GiB.
        for expected in ("core file size        0 ", "open files            256 ", f"file size             {4 << 30} "):
            assert f"Max {expected}" in limits, limits
        # When memory runs out, the kernel prefers a machine to the server, and neither is readable by their user.
        points = [int(server.shell(f"cat /proc/{pid}/oom_score_adj")) for pid in (server.process.pid, runner, machine)]
        assert points[1:] == [points[0] + 500] * 2, points
        for pid in (server.process.pid, runner):
            assert server.shell(f"stat -c %u /proc/{pid}/environ").strip() == "0"
        # The process sees only its machine's folder and its prepared image.
        hidden = ["sys", "etc/passwd", "etc/shadow", str(server.data).lstrip("/") + "/images"]
        assert server.shell(f"cd /proc/{machine}/root && ls -d {' '.join(hidden)} 2>/dev/null") == ""
        # Of /proc, only its own descriptors, if it takes the memory from one of them.
        seen = server.shell(f"cd /proc/{machine}/root && find proc -maxdepth 3 2>/dev/null").split()
        assert set(seen) <= {"proc", "proc/self", "proc/self/fd"} | {name for name in seen if name.startswith("proc/self/fd/")}
        assert server.shell(f"find /proc/{machine}/root/ -xdev -name '*.erofs' | wc -l").strip() == "1"
        devices = set(server.shell(f"ls /proc/{machine}/root/dev").split())
        assert devices <= {"null", "urandom", "kvm"}, devices
        assert_taken_over_vmm_is_refused(inject(machine, runner), "ENOENT", "ENOENT")
        ran = await tools.call("execute", environment_id=made["environment_id"], code="echo up")
        assert ran["stdout"] == "up\n"


@pytest.mark.smoke
async def test_a_host_without_user_namespaces_still_runs_machines(serve, inject):
    setting = "/proc/sys/user/max_user_namespaces"
    server = serve()
    if not server.host:
        # The setting is that of the user namespace in which it is changed.
        script = f'echo 0 >{setting}; exec "$@"'
        server.through = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    before = server.host and server.shell(f"cat {setting}; echo 0 >{setting}").strip()
    try:
        server.start()
        assert "machines share the server's namespaces" in server.output()
        async with server.client() as tools, tools.environment("shell") as made:
            ran = await tools.call("execute", environment_id=made["environment_id"], code="echo up")
            assert ran["stdout"] == "up\n"
            (machine,), (runner,) = server.machines(), server.runners()
            assert status(server, machine)["NoNewPrivs"].strip() == "1"
            # Without Landlock, the process may read what its user may read; the log of the start says so.
            has_landlock = "this kernel has no Landlock" not in server.output()
            assert_taken_over_vmm_is_refused(inject(machine, runner), "EACCES" if has_landlock else "done", "EACCES")
            ran = await tools.call("execute", environment_id=made["environment_id"], code="echo still up")
            assert ran["stdout"] == "still up\n"
    finally:
        if before:
            server.shell(f"echo {before} >{setting}")
