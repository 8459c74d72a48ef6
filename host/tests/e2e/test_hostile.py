# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile programs, up to three per class: after each, the environment still answers and the server has not grown."""


import pytest

# The timeout of a program; most of the programs never end by themselves.
TIMEOUT_S = 4

# Maximum growth of the server's memory over one class, in KiB. Its buffers have limits that no guest can raise.
GROWTH_KIB_MAX = 16 * 1024

PROGRAMS = {
    "process": {
        "fork without end": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
        "leave daemons that no signal ends": """
import os, signal, time
for number in range(50):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for one in range(1, 65):
                try: signal.signal(one, signal.SIG_IGN)
                except (OSError, ValueError): pass
            while True: time.sleep(1)
        os._exit(0)
time.sleep(1000)
""",
        "kill and stop everything in reach": """
import os, signal, time
while True:
    for one in (signal.SIGSTOP, signal.SIGKILL):
        for pid in [1, -1] + [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            if pid != os.getpid():
                try: os.kill(pid, one)
                except OSError: pass
""",
    },
    "memory": {
        "take all memory": "hog = []\nwhile True: hog.append(bytearray(8 << 20))",
        "fill the shared memory": """
while True:
    with open("/dev/shm/hog", "ab") as file: file.write(bytes(8 << 20))
""",
        "take all memory in many small processes": """
import os
for _ in range(200):
    if os.fork() == 0:
        hog = bytearray(os.urandom(1 << 20) * 40)
        while True: hog[:1] = b"x"
os.wait()
""",
    },
    "output": {
        "flood both outputs": """
import os
while True:
    os.write(1, b"o" * 65536); os.write(2, b"e" * 65536)
""",
        "write a byte at a time": "import os\nwhile True: os.write(1, b'x')",
        "write bytes that are not text": "import os\nwhile True: os.write(1, os.urandom(65536))",
    },
    "file system": {
        "fill the disk": "with open('hog', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        "make files without end": "import os\nos.makedirs('many', exist_ok=True)\nn = 0\nwhile True:\n    open(f'many/{n}', 'w').close(); n += 1",
        "make deep folders and links in circles": """
import os
os.symlink("knot", "knot")
while True:
    os.mkdir("d"); os.symlink("/", "d/up"); os.chdir("d")
""",
    },
    "descriptor": {
        "open files without end, in many processes": """
import os
for _ in range(20):
    if os.fork() == 0: break
hog = []
while True:
    try: hog.append(open("/dev/null"))
    except OSError: pass
""",
        "fill pipes": """
import os
hog = []
while True:
    try:
        hog.append(os.pipe()); os.set_blocking(hog[-1][1], False); os.write(hog[-1][1], bytes(65536))
    except OSError: pass
""",
        "send descriptors in a ring": """
import array, os, socket
a, b = socket.socketpair()
while True:
    try: a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [a.fileno(), b.fileno()]))])
    except OSError: a, b = socket.socketpair()
""",
    },
    "kernel interface": {
        "call the kernel with nonsense": """
import ctypes, os, random
libc = ctypes.CDLL(None)
while True:
    if os.fork() == 0:
        for _ in range(200):
            libc.syscall(random.randrange(460), *[random.getrandbits(random.choice((3, 16, 47, 64))) for _ in range(6)])
        os._exit(0)
    os.wait()
""",
        "read and write all of proc and sys": """
import os
while True:
    for top in ("/proc", "/sys"):
        for folder, _, names in os.walk(top):
            for name in names:
                for how in (os.O_RDONLY, os.O_WRONLY):
                    try: fd = os.open(f"{folder}/{name}", how | os.O_NONBLOCK)
                    except OSError: continue
                    try: os.read(fd, 65536) if how == os.O_RDONLY else os.write(fd, b"1")
                    except OSError: pass
                    os.close(fd)
""",
        "trace whatever can be traced": """
import ctypes, os
libc = ctypes.CDLL(None)
while True:
    for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
        libc.ptrace(16, int(pid), 0, 0); libc.ptrace(7, int(pid), 0, 0)
        try: open(f"/proc/{pid}/mem", "r+b").write(b"x")
        except OSError: pass
""",
    },
}


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_hostile_programs_leave_the_environment_answering(serve, kind):
    # A small disk, so that it can be filled within the timeout.
    server = serve(DEFAULT_DISK_MB="256").start()
    async with server.client() as tools:
        before = None
        for name, program in PROGRAMS[kind].items():
            async with tools.environment("python") as made:
                one = made["environment_id"]
                before = before or server.resident_kib()
                ended = await tools.raw("execute", environment_id=one, code=program, timeout_seconds=TIMEOUT_S)
                assert "SyntaxError" not in ended.content[0].text, name
                ran = await tools.call("execute", environment_id=one, language="shell", code="echo alive")
                assert (ran["exit_code"], ran["stdout"]) == (0, "alive\n"), name
                listed = await tools.call("list_files", environment_id=one, path="/etc")
                assert listed["count"] > 10, name
        assert server.resident_kib() - before < GROWTH_KIB_MAX
