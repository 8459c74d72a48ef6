#!/usr/bin/python3
# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Simulates a compromised program of a machine: tries forbidden calls and writes the results to the scratch disk."""

import ctypes
import errno
import json
import mmap
import os
import signal
import stat
import sys
import threading
import time

SIGCHLD, CLONE_NEWUSER, X32, NO_PROCESS = 17, 0x10000000, 0x40000000, 4_194_303
AT_FDCWD, FIFO = -100, 0o010600
UNIX, INET, NETLINK, ALG, VSOCK, STREAM, DATAGRAM = 1, 2, 16, 38, 40, 1, 2
KEEP_SIZE, PUNCH_HOLE, INSERT_RANGE = 1, 2, 32
NULL = os.open("/dev/null", os.O_RDWR)
SCRATCH = os.open("scratch", os.O_RDWR)
PAIR = (ctypes.c_int * 2)()
OWNER = (ctypes.c_int * 2)(1, os.getppid())
MORE_THAN_THE_DISK = (1 << 20) + 1
MORE_THAN_THE_MEMORY_AND_OVERHEAD = 3 << 30
CALLS = {
    "create a user namespace": (56, CLONE_NEWUSER | SIGCHLD),
    "create a user namespace with clone3": (435, 0, 0),
    "create a process": (56, SIGCHLD, 0, 0, 0, 0),
    "create a process by fork": (57,),
    "signal itself": (62, os.getpid(), 0),
    "signal all processes": (62, -1, 0),
    "signal a process": (62, NO_PROCESS, 0),
    "signal a thread": (234, NO_PROCESS, NO_PROCESS, 0),
    "signal with a value": (129, NO_PROCESS, 0, 0),
    "signal by descriptor": (424, -1, 0, 0, 0),
    "choose the signal of a descriptor": (72, NULL, 10, signal.SIGKILL),
    "let a descriptor signal its parent": (72, NULL, 8, os.getppid()),
    "let a descriptor signal a thread": (72, NULL, 15, OWNER),
    "let a socket signal its parent": (16, NULL, 0x8901, OWNER),
    "let a socket signal its parent by another request": (16, NULL, 0x8902, OWNER),
    "enlarge a pipe": (72, NULL, 1031, 1 << 20),
    "copy a descriptor": (438, -1, 0, 0),
    "read its own limits": (302, 0, 0, 0, 0),
    "limit a process": (302, NO_PROCESS, 0, 0, 0),
    "slow a process down": (141, 0, NO_PROCESS, 19),
    "keep a process off a processor": (203, NO_PROCESS, 8, b"\1" * 8),
    "survive its runner": (157, 1, 0, 0, 0, 0),
    "change the times of a file": (280, AT_FDCWD, b"/etc/passwd", 0, 0),
    "watch files": (294, 0),
    "make a call that is newer than the filter": (463, -1, b"", 0, 0, 0, 0),
    "use io_uring": (425, 1, 0),
    "trace": (101, 0, 0, 0, 0),
    "trace by the x32 interface": (X32 | 521, 0, 0, 0, 0),
    "create a file": (2, b"file", os.O_WRONLY | os.O_CREAT, 0o600),
    "create a file by openat": (257, AT_FDCWD, b"file", os.O_WRONLY | os.O_CREAT, 0o600),
    "create a file by openat2": (437, AT_FDCWD, b"file", b"\1" + b"\0" * 23, 24),
    "create a file by creat": (85, b"file", 0o600),
    "create a file without a name": (257, AT_FDCWD, b".", os.O_WRONLY | os.O_TMPFILE, 0o600),
    "create a file in memory": (319, b"file", 0),
    "create a folder": (83, b"folder", 0o700),
    "create a folder by mkdirat": (258, AT_FDCWD, b"folder", 0o700),
    "create a node": (133, b"node", FIFO, 0),
    "create a node by mknodat": (259, AT_FDCWD, b"node", FIFO, 0),
    "create a symbolic link": (88, b"/", b"link"),
    "create a symbolic link by symlinkat": (266, b"/", AT_FDCWD, b"link"),
    "create a hard link": (86, b"scratch", b"link"),
    "create a hard link by linkat": (265, AT_FDCWD, b"scratch", AT_FDCWD, b"link", 0),
    "rename a file": (82, b"scratch", b"other"),
    "remove a file": (87, b"scratch"),
    "write to another file of its folder": (2, b"initramfs", os.O_WRONLY, 0),
    "write to its disk": (18, SCRATCH, b"data", 4, 0),
    "make its disk larger": (77, SCRATCH, MORE_THAN_THE_DISK),
    "write beyond its disk": (18, SCRATCH, b"data", 4, MORE_THAN_THE_DISK),
    "allocate space beyond the end of its disk": (285, SCRATCH, KEEP_SIZE, MORE_THAN_THE_DISK, 4096),
    "allocate space beyond the end of its disk by ioctl": (16, SCRATCH, 0x4030582A, b"\0" * 48),
    "move the data of its disk": (285, SCRATCH, INSERT_RANGE, 0, 4096),
    "free space of its disk": (285, SCRATCH, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
    "lock a file": (73, SCRATCH, 1),
    "lock a part of a file": (72, SCRATCH, 37, b"\0" * 32),
    "write all data of the host to its disks": (162,),
    "create a Unix socket": (41, UNIX, STREAM, 0),
    "create an internet socket": (41, INET, STREAM, 0),
    "create a netlink socket": (41, NETLINK, DATAGRAM, 0),
    "create a socket of the kernel's cryptography": (41, ALG, DATAGRAM, 0),
    "create a vsock socket": (41, VSOCK, STREAM, 0),
    "create a pair of Unix sockets": (53, UNIX, STREAM, 0, PAIR),
    "create a pair of datagram sockets": (53, UNIX, DATAGRAM, 0, PAIR),
    "connect to a socket": (42, NULL, b"\1\0/run/any", 10),
    "listen": (50, NULL, 1),
    "use memory beyond the guest's and its own": (9, 0, MORE_THAN_THE_MEMORY_AND_OVERHEAD, 3, 0x22, -1, 0),
    "share memory with other processes": (29, 0, 4096, 0o1600),
}


def attempt(numbers):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = (argument if isinstance(argument, (bytes, ctypes.Array)) else ctypes.c_long(argument) for argument in numbers)
    result = libc.syscall(*words)
    if os.getpid() != SELF:
        os._exit(0)
    return "done" if result != -1 else errno.errorcode[ctypes.get_errno()]


def open_file(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def threads():
    """Creates threads until the kernel refuses one. Returns their number, or `more` if that is beyond the limit."""
    threading.stack_size(64 << 10)
    ends = threading.Event()
    try:
        for number in range(200):
            threading.Thread(target=ends.wait, daemon=True).start()
    except RuntimeError:
        return "some" if number > 100 else number
    finally:
        ends.set()
    return "more"


def descriptors():
    """Opens files until the kernel refuses one, and returns the highest number of a descriptor."""
    made = []
    try:
        while True:
            made.append(os.dup(NULL))
    except OSError:
        return made[-1]
    finally:
        for descriptor in made:
            os.close(descriptor)


def inherited():
    """Returns the numbers of the open descriptors. Landlock keeps the program from listing them."""
    return [number for number in range(256) if os.path.lexists(f"/proc/self/fd/{number}")]


def memory():
    """Tries to change the file of the guest's memory. The other files are the state of the devices and the image."""
    number = next(number for number in inherited() if "waggle-memory" in os.readlink(f"/proc/self/fd/{number}"))
    opened = os.open(f"/proc/self/fd/{number}", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_long
    mapped = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, opened, 0)
    image = os.open("image", os.O_RDONLY)
    return {
        "map the memory, shared and writable": "done" if mapped != -1 else errno.errorcode[ctypes.get_errno()],
        "write to the memory": attempt((18, opened, b"data", 4, 0)),
        "make the memory larger": attempt((77, opened, 1 << 40)),
        "make the memory smaller": attempt((77, opened, 0)),
        "free a part of the memory": attempt((285, opened, PUNCH_HOLE | KEEP_SIZE, 0, 4096)),
        "allocate memory beyond its end": attempt((285, opened, 0, 1 << 30, 4096)),
        "open the image again, for writing": open_file(f"/proc/self/fd/{image}", os.O_RDWR),
    }


def flood_sockets():
    """Sends a long line of nonsense over each connection, among which is the monitor's."""
    for number in inherited():
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.set_blocking(number, False)
                for _ in range(1000):
                    os.write(number, b"{" * 4096)
                    time.sleep(0.0001)
        except OSError:
            pass


SELF = os.getpid()
tried = {name: attempt(numbers) for name, numbers in CALLS.items()}
tried["its process id"] = SELF
tried["write to a mount below a read-only folder"] = open_file("/usr/share/written", os.O_WRONLY)
tried["read the memory of its parent"] = open_file(f"/proc/{os.getppid()}/mem", os.O_RDONLY)
tried["read a file of the host"] = open_file("/etc/passwd", os.O_RDONLY)
tried |= memory()
flood_sockets()
tried["last descriptor"] = descriptors()
tried["threads"] = threads()
os.pwrite(SCRATCH, json.dumps(tried).encode() + b"\n", 0)
time.sleep(60)
sys.exit("was not killed")
