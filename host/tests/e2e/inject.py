# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a process execute system calls, as an attacker would who has taken it over.

    inject.py PID RUNNER    executes the calls below in the main thread of a VMM whose runner has the other id; prints a
                            JSON object of their results

The process must wait in a system call, and continues with it afterwards. Only root can do this to a VMM. This program
uses only the standard library, because the nested host has nothing else.
"""

import contextlib
import ctypes
import errno
import json
import os
import sys

PTRACE_SINGLESTEP, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH = 9, 12, 13, 17
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
# The processor's instruction for system calls.
SYSCALL = b"\x0f\x05"
# Bytes below the stack pointer that functions may use, and room for the calls' data.
RED_ZONE, DATA = 128, 512

AT_FDCWD, NULL, WRITE, CREATE, CLOEXEC = -100, 0, 1, 0o100, 0o2000000
KILL, MEMORY = 9, 64 << 30
UNIX, INET, NETLINK, ALG, VSOCK, STREAM, DATAGRAM = 1, 2, 16, 38, 40, 1, 2
RUNNER = sys.argv[2]
# Without those for which QEMU's own filter ends the process, such as fork.
CALLS = {
    "create a file": (257, AT_FDCWD, b"file", WRITE | CREATE, 0o600),
    "create a folder": (83, b"folder", 0o700),
    "rename a file": (82, b"scratch", b"other"),
    "remove a file": (87, b"scratch"),
    "create a file in memory": (319, b"file", 0),
    "read a file of the host": (257, AT_FDCWD, b"/etc/passwd", CLOEXEC, 0),
    "read the memory of its parent": (257, AT_FDCWD, f"/proc/{RUNNER}/mem".encode(), CLOEXEC, 0),
    "choose the signal of a descriptor": (72, 0, 10, KILL),
    "let a descriptor signal a process": (72, 0, 8, 1),
    "survive its runner": (157, 1, 0, 0, 0, 0),
    "signal a process": (62, 4_194_303, 0),
    "trace": (101, 0, 0, 0, 0),
    "use io_uring": (425, 1, 0),
    "create an internet socket": (41, INET, STREAM, 0),
    "create a datagram socket": (41, UNIX, DATAGRAM, 0),
    "create a netlink socket": (41, NETLINK, DATAGRAM, 0),
    "create a socket of the kernel's cryptography": (41, ALG, DATAGRAM, 0),
    "create a vsock socket": (41, VSOCK, STREAM, 0),
    "reserve 64 GiB of memory": (9, 0, MEMORY, 3, 0x4022, -1, 0),
    "learn its own process id": (39,),
}


class Registers(ctypes.Structure):
    """`struct user_regs_struct` of x86-64."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
            "fs_base gs_base ds es fs gs"
        ).split()
    ]


libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, pid, data=None):
    if libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")


@contextlib.contextmanager
def stopped(pid):
    """Stops a thread in its system call, and lets it continue the call afterwards. Yields its registers."""
    before = Registers()
    ptrace(PTRACE_SEIZE, pid)
    ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, WALL)
    ptrace(PTRACE_GETREGS, pid, ctypes.addressof(before))
    try:
        yield before
    finally:
        ptrace(PTRACE_SETREGS, pid, ctypes.addressof(before))
        ptrace(PTRACE_DETACH, pid)


def execute(pid, memory, before, number, arguments):
    """Executes one call, and returns its result."""
    registers = Registers.from_buffer_copy(before)
    place = before.rsp - RED_ZONE - DATA
    for name, argument in zip(["rdi", "rsi", "rdx", "r10", "r8", "r9"], arguments):
        if isinstance(argument, bytes):
            os.pwrite(memory, argument + b"\0", place)
            argument, place = place, place + len(argument) + 1
        setattr(registers, name, argument % (1 << 64))
    # The thread has just left its own `syscall` instruction. No number means that the kernel must not repeat that call.
    registers.rip, registers.rax, registers.orig_rax = before.rip - len(SYSCALL), number, (1 << 64) - 1
    assert os.pread(memory, len(SYSCALL), registers.rip) == SYSCALL, "the process does not wait in a system call"
    ptrace(PTRACE_SETREGS, pid, ctypes.addressof(registers))
    ptrace(PTRACE_SINGLESTEP, pid)
    _, status = os.waitpid(pid, WALL)
    assert os.WIFSTOPPED(status), f"the call {number} ended the process with {os.waitstatus_to_exitcode(status)}"
    ptrace(PTRACE_GETREGS, pid, ctypes.addressof(registers))
    result = ctypes.c_longlong(registers.rax).value
    return "done" if result >= 0 else errno.errorcode[-result]


def main(pid):
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    with stopped(pid) as before:
        results = {name: execute(pid, memory, before, number, arguments) for name, (number, *arguments) in CALLS.items()}
    print(json.dumps(results))


main(int(sys.argv[1]))
