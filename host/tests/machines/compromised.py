#!/usr/bin/python3
# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Simulates a compromised program of a machine: tries forbidden calls and writes the results to the file `tried`."""

import ctypes
import errno
import json
import os
import sys
import time

SIGCHLD, CLONE_NEWUSER, X32, NO_PROCESS = 17, 0x10000000, 0x40000000, 4_194_303
AT_FDCWD, FIFO = -100, 0o010600
CALLS = {
    "create a user namespace": (56, CLONE_NEWUSER | SIGCHLD),
    "create a user namespace with clone3": (435, 0, 0),
    "signal itself": (62, os.getpid(), 0),
    "signal all processes": (62, -1, 0),
    "signal a process": (62, NO_PROCESS, 0),
    "signal a thread": (234, NO_PROCESS, NO_PROCESS, 0),
    "signal with a value": (129, NO_PROCESS, 0, 0),
    "signal by descriptor": (424, -1, 0, 0, 0),
    "copy a descriptor": (438, -1, 0, 0),
    "read its own limits": (302, 0, 0, 0, 0),
    "limit a process": (302, NO_PROCESS, 0, 0, 0),
    "use io_uring": (425, 1, 0),
    "trace": (101, 0, 0, 0, 0),
    "trace by the x32 interface": (X32 | 521, 0, 0, 0, 0),
    "create a folder": (83, b"folder", 0o700),
    "create a folder by mkdirat": (258, AT_FDCWD, b"folder", 0o700),
    "create a node": (133, b"node", FIFO, 0),
    "create a node by mknodat": (259, AT_FDCWD, b"node", FIFO, 0),
    "create a symbolic link": (88, b"/", b"link"),
    "create a symbolic link by symlinkat": (266, b"/", AT_FDCWD, b"link"),
    "create a hard link": (86, b"scratch", b"link"),
    "create a hard link by linkat": (265, AT_FDCWD, b"scratch", AT_FDCWD, b"link", 0),
}


def attempt(numbers):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*(argument if isinstance(argument, bytes) else ctypes.c_long(argument) for argument in numbers))
    if os.getpid() != SELF:
        os._exit(0)
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def write(path):
    try:
        with open(path, "w"):
            return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


SELF = os.getpid()
tried = {name: attempt(numbers) for name, numbers in CALLS.items()}
tried["its process id"] = SELF
tried["write to a mount below a read-only folder"] = write("/usr/share/written")
with open("writing", "w") as file:
    json.dump(tried, file)
os.rename("writing", "tried")
time.sleep(60)
sys.exit("was not killed")
