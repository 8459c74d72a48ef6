#!/usr/bin/python3
# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Stands in for a program of a machine that its guest has taken over: writes down what comes of what it tries."""

import ctypes
import errno
import json
import os
import sys
import time

SIGCHLD, CLONE_NEWUSER, X32, NOBODY = 17, 0x10000000, 0x40000000, 4_194_303
AT_FDCWD, FIFO = -100, 0o010600
CALLS = {
    "make a user namespace": (56, CLONE_NEWUSER | SIGCHLD),
    "make it where no filter sees it": (435, 0, 0),
    "signal itself": (62, os.getpid(), 0),
    "signal everybody": (62, -1, 0),
    "signal a process": (62, NOBODY, 0),
    "signal a thread": (234, NOBODY, NOBODY, 0),
    "signal with a value": (129, NOBODY, 0, 0),
    "signal by descriptor": (424, -1, 0, 0, 0),
    "take a descriptor": (438, -1, 0, 0),
    "see its own limits": (302, 0, 0, 0, 0),
    "limit a process": (302, NOBODY, 0, 0, 0),
    "use io_uring": (425, 1, 0),
    "trace": (101, 0, 0, 0, 0),
    "trace by the x32 interface": (X32 | 521, 0, 0, 0, 0),
    "make a folder": (83, b"folder", 0o700),
    "make a folder below one": (258, AT_FDCWD, b"folder", 0o700),
    "make a node": (133, b"node", FIFO, 0),
    "make a node below a folder": (259, AT_FDCWD, b"node", FIFO, 0),
    "make a symbolic link": (88, b"/", b"link"),
    "make a symbolic link below a folder": (266, b"/", AT_FDCWD, b"link"),
    "make a hard link": (86, b"scratch", b"link"),
    "make a hard link below a folder": (265, AT_FDCWD, b"scratch", AT_FDCWD, b"link", 0),
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
tried["its number"] = SELF
tried["write below what is read-only"] = write("/usr/share/written")
with open("writing", "w") as file:
    json.dump(tried, file)
os.rename("writing", "tried")
time.sleep(60)
sys.exit("nobody ended it")
