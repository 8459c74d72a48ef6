# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Each defence inside the guest denies its operations; they succeed once that one defence is off.

The success without the defence shows that a probe tests something.
"""

import contextlib
import json

import pytest

from server import image

# Functions for probes. `attempt` prints `refused` with the reason, or `done` with the result.
PRELUDE = """
import ctypes, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        result = action()
    except OSError as error:
        print("refused:", error.strerror)
    else:
        print("done:", result)

def syscall(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

NOT_PERMITTED = "refused: Operation not permitted"

# Probes by name: the user, the code, the output with all defences on, and the one defence that stops the probe.
PROBES = {
    "vsock": ("sandbox", "attempt(lambda: socket.socket(socket.AF_VSOCK) and 'socket')", NOT_PERMITTED, "filter"),
    "user_namespace": ("sandbox", "attempt(lambda: syscall(272, 0x10000000))", NOT_PERMITTED, "filter"),
    "io_uring": (
        "sandbox",
        "attempt(lambda: syscall(425, 8, ctypes.create_string_buffer(120)) and 'ring')",
        NOT_PERMITTED,
        "filter",
    ),
    # A program's own listener could let the system calls continue that the agent refuses.
    "listener": (
        "sandbox",
        """
allow = ctypes.c_uint64(0x7fff000000000006); libc.prctl(38, 1, 0, 0, 0)
attempt(lambda: syscall(317, 1, 8, (ctypes.c_uint64 * 2)(1, ctypes.addressof(allow))) and 'listener')
""",
        NOT_PERMITTED,
        "filter",
    ),
    "set_user_id": (
        "sandbox",
        "print(subprocess.run(['/var/tmp/shell', '-p', '-c', 'id -u'], capture_output=True, text=True).stdout.strip())",
        "1000",
        "no-new-privileges",
    ),
    "device_node": ("root", "attempt(lambda: os.mknod('/dev/disk', 0o60600, os.makedev(254, 0)))", NOT_PERMITTED, "capabilities"),
    "raw_disk_limits": ("root", "print(int(open('/proc/self/status').read().split('CapBnd:')[1].split()[0], 16) >> 21 & 1)", "0", "capabilities"),
    "see_the_agent": (
        "root",
        "print(any('/agent' in open(f'/proc/{pid}/cgroup').read() for pid in os.listdir('/proc') if pid.isdigit()))",
        "False",
        "namespaces",
    ),
}

# Operations that several defences deny, so that switching one off permits none of them. A mount, for example, needs a
# capability and a system call.
ALWAYS_REFUSED = {
    "mount": ("root", "attempt(lambda: syscall(165, b'tmpfs', b'/mnt', b'tmpfs', 0, 0))"),
    "load_module": ("root", "attempt(lambda: syscall(175, b'', 0, b''))"),
    "kexec": ("root", "attempt(lambda: syscall(246, 0, 0, 0, 0))"),
    "reboot": ("root", "attempt(lambda: syscall(169, 0xfee1dead, 672274793, 0x1234567, 0))"),
    "set_clock": ("root", "import time; attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0))"),
    "join_namespace": ("root", "attempt(lambda: syscall(308, os.open('/proc/self/ns/mnt', 0), 0))"),
}

UNREACHABLE = {
    "root_home": ("sandbox", "attempt(lambda: os.listdir('/root'))", "refused: Permission denied"),
    "control_groups": (
        "root",
        "attempt(lambda: open('/sys/fs/cgroup/cgroup.procs', 'w'))",
        "refused: Read-only file system",
    ),
    "kernel_settings": (
        "root",
        "attempt(lambda: open('/proc/sys/kernel/core_pattern', 'w'))",
        "refused: Read-only file system",
    ),
    "disks": ("root", "print([name for name in os.listdir('/dev') if name.startswith('vd') or 'vsock' in name])", "[]"),
    "first_process": ("root", "attempt(lambda: os.kill(1, 9)); print('alive')", "done: None\nalive"),
    "first_process_limits": (
        "root",
        "import resource; attempt(lambda: syscall(302, 1, 7, (ctypes.c_uint64 * 2)(0, 0), 0))",
        NOT_PERMITTED,
    ),
    "first_process_score": (
        "root",
        "attempt(lambda: open('/proc/1/oom_score_adj', 'w'))",
        "refused: Read-only file system",
    ),
    "agents_memory": ("root", "attempt(lambda: open('/proc/1/mem', 'rb'))", "refused: Permission denied"),
    "initial_root": (
        "root",
        """
os.mkdir("/tmp/below"); up = os.open("/", 0); os.chroot("/tmp/below"); os.fchdir(up)
for _ in range(20): os.chdir("..")
os.chroot("."); print(os.path.exists("/waggle/boot"))
""",
        "False",
    ),
}


class Guest:
    """One environment, in which code runs as the sandbox user or as the guest's root."""

    def __init__(self, tools, made):
        self.tools = tools
        self.id = made["environment_id"]

    async def run(self, user, code):
        program = PRELUDE + code
        if user == "sandbox":
            ran = await self.tools.call("execute", environment_id=self.id, code=program, language="python")
        else:
            # The operator's own install command runs as root.
            await self.tools.call("write_file", environment_id=self.id, path="as-root.py", content=program)
            ran = await self.tools.call("install_packages", environment_id=self.id, packages="none")
        assert ran["stderr"] == "", ran
        return ran["stdout"].strip()


@contextlib.asynccontextmanager
async def guest(serve, relax="", **more):
    settings = more | {
        "IMAGE_SHELL": image("python"),
        "RUNTIME_SHELL_INSTALL_COMMAND": "/usr/bin/python3 /home/sandbox/as-root.py",
    }
    server = serve(**settings, **({"RELAX": relax} if relax else {})).start()
    async with server.client() as tools, tools.environment("shell") as made:
        guest = Guest(tools, made)
        await guest.run("root", "subprocess.run('cp /bin/bash /var/tmp/shell && chmod 4755 /var/tmp/shell', shell=True)")
        yield guest


async def test_every_forbidden_operation_is_denied(serve):
    async with guest(serve) as one:
        found = {name: await one.run(user, code) for name, (user, code, _, _) in PROBES.items()}
        assert found == {name: refused for name, (_, _, refused, _) in PROBES.items()}
        found = {name: await one.run(user, code) for name, (user, code) in ALWAYS_REFUSED.items()}
        assert found == dict.fromkeys(ALWAYS_REFUSED, NOT_PERMITTED)
        found = {name: await one.run(user, code) for name, (user, code, _) in UNREACHABLE.items()}
        assert found == {name: answer for name, (_, _, answer) in UNREACHABLE.items()}
        # The environment still works.
        assert await one.run("sandbox", "print(os.getuid(), os.getpid() < 1000)") == "1000 True"


@pytest.mark.parametrize("defence", sorted({defence for _, _, _, defence in PROBES.values()}))
async def test_each_defence_denies_its_operations_alone(serve, defence):
    async with guest(serve, relax=defence) as one:
        for name, (user, code, refused, stops) in PROBES.items():
            found = await one.run(user, code)
            off = {defence, "filter"} if defence == "no-new-privileges" else {defence}
            assert (found != refused) == (stops in off), f"{name} without {defence}: {found}"


async def test_commands_run_as_their_user_with_no_new_privs_and_a_filter(serve):
    async with guest(serve) as one:
        status = "print(json.dumps([line.split()[1] for line in open('/proc/self/status') if line[:5] in ('Uid:\\t', 'NoNew', 'Secco')]))"
        assert json.loads(await one.run("sandbox", "import json; " + status)) == ["1000", "1", "2", "4"]
        assert json.loads(await one.run("root", "import json; " + status)) == ["0", "1", "2", "4"]


async def test_changes_to_dev_by_root_do_not_affect_the_agent(serve):
    async with guest(serve) as one:
        spoil = """
for name in ("null", "urandom", "zero"):
    os.remove(f"/dev/{name}"); os.mkfifo(f"/dev/{name}")
"""
        await one.run("root", spoil)
        # The agent has its own devices, so it can still make the file for the code, and stdin.
        assert await one.tools.text("list_files", environment_id=one.id, path="/dev")
        ran = await one.tools.call("execute", environment_id=one.id, code="echo served", language="shell")
        assert ran["stdout"] == "served\n"


async def test_a_command_that_stops_itself_has_not_ended(serve):
    async with guest(serve) as one:
        code = """
libc.ptrace(0, 0, 0, 0)
os.kill(os.getpid(), 19)
"""
        result = await one.tools.raw(
            "execute", environment_id=one.id, code=PRELUDE + code, language="python", timeout_seconds=3
        )
        assert result.is_error and "timeout" in result.content[0].text


async def test_a_file_is_replaced_atomically_in_a_machine_too(serve):
    async with guest(serve) as one:
        await one.tools.call("write_file", environment_id=one.id, path="kept", content="old")
        before = await one.run("sandbox", "print(os.stat('/home/sandbox/kept').st_ino)")
        await one.tools.call("write_file", environment_id=one.id, path="kept", content="new")
        after = await one.run("sandbox", "print(os.stat('/home/sandbox/kept').st_ino, open('/home/sandbox/kept').read())")
        assert after.split()[1] == "new"
        assert after.split()[0] != before, "the file was written in place"


async def test_no_working_directory_leads_out_of_the_sandbox(serve):
    async with guest(serve) as one:
        # Before a program runs, its control group's folder is open, and `..` leads from there to the agent's folders.
        for folder in [f"/proc/self/fd/{number}" for number in range(24)] + ["/proc/self/root", "/proc/self/cwd"]:
            arguments = {"environment_id": one.id, "code": "pwd; ls ..", "language": "shell", "working_directory": folder}
            assert "failed to enter the working directory" in await one.tools.refusal("execute", **arguments), folder
