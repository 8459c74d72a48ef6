# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The server's memory stays within its limits, whatever its clients send and do not read; docs/sizing.md has the figures."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time

import pytest

pytestmark = pytest.mark.outside("measures the process of the server")

VERSION = "2026-07-28"
MIB = 1024

# Number of processors of each server here. With many, what they use at a time would hide what is not counted.
PROCESSORS = min(2, len(os.sched_getaffinity(0)))

# One caller's half of the memory for results, and its own reserve, in KiB.
RESULTS_KIB = 34 * MIB
# One caller's half of the memory for bodies, and its own reserve, in KiB.
BODIES_KIB = 129 * MIB
# Memory of the tasks of one caller, in KiB.
TASKS_KIB = 128 * MIB
# Memory for the results that each processor writes at a time, and of the allocator, in KiB.
RESULTS_SLACK_KIB = (16 + 12 * PROCESSORS) * MIB
# Memory for the messages that each processor parses at a time, and of the allocator, in KiB.
SLACK_KIB = (16 + 24 * PROCESSORS) * MIB
# The size of a head, and of what each connection needs besides, in KiB.
CONNECTION_KIB = 64 + 24

# The time without another answer after which all others are taken to wait for memory.
QUIET_S = 4

# Bytes that have six characters in JSON, and seven in JSON within JSON.
ESCAPED = "head -c {} /dev/zero | tr '\\0' '\\1' >escaped"
PRINT = "cat escaped; cat escaped >&2"


class Peak:
    """Measures how much the resident memory of a server has grown at most, since it had `before` KiB."""

    def __init__(self, server, before):
        self.server = server
        self.before = self.most = before
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *fault):
        self.ended.set()
        self.thread.join()
        print(f"grown by {self.growth / MIB:.1f} MiB, then {(self.server.resident_kib() - self.before) / MIB:.1f} MiB")

    def watch(self):
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.server.resident_kib())

    @property
    def growth(self):
        return self.most - self.before


def start_small(serve):
    server = serve(DEFAULT_MEMORY_MB="1024")
    processors = sorted(os.sched_getaffinity(0))[:PROCESSORS]
    server.through = ["taskset", "--cpu-list", ",".join(map(str, processors))]
    return server.start()


def connect(server):
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    stream.connect(("127.0.0.1", server.port))
    return stream


def call(server, tool, arguments, capabilities=None, more=None):
    """Sends a call over its own connection, and does not read the answer."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": capabilities or {},
        "io.modelcontextprotocol/clientInfo": {"name": "memory", "version": "1"},
        **(more or {}),
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        f"mcp-protocol-version: {VERSION}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    stream = connect(server)
    stream.sendall(head.encode() + body)
    return stream


def has_answer(stream):
    """Whether a message has arrived, and not only the head and the white space of an answer that is still being made."""
    with contextlib.suppress(BlockingIOError):
        return b'{"' in stream.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


def answered(streams, within_s):
    """Waits until each connection has the beginning of an answer, or no more of them come; returns how many have."""
    count, deadline, changed = 0, time.monotonic() + within_s, time.monotonic()
    while count < len(streams) and time.monotonic() < deadline and (not count or time.monotonic() < changed + QUIET_S):
        before, count = count, sum(map(has_answer, streams))
        changed = time.monotonic() if count > before else changed
        time.sleep(0.2)
    return count


@contextlib.contextmanager
def closing(streams):
    try:
        yield streams
    finally:
        for stream in streams:
            stream.close()


async def test_unread_results_stay_within_their_budget(serve):
    server = start_small(serve)
    async with server.client() as tools:
        one = (await tools.call("create_environment", language="shell"))["environment_id"]

        def run(count, tool, arguments):
            with Peak(server, before) as peak, closing([call(server, tool, arguments) for _ in range(count)]) as streams:
                return answered(streams, 15), peak

        await tools.call("execute", environment_id=one, code=ESCAPED.format(524_288))
        before = server.resident_kib()
        execute = {"environment_id": one, "code": PRINT, "output_bytes": 524_288, "timeout_seconds": 120}
        read = {"environment_id": one, "path": "escaped", "limit": 160_000}
        # The outputs of running calls, of which an environment runs 32 at a time, are not part of the budget.
        for count, tool, arguments, running in [(33, "execute", execute, 32 * MIB), (120, "read_file", read, 0)]:
            begun, peak = await asyncio.to_thread(run, count, tool, arguments)
            assert begun and peak.growth < RESULTS_KIB + running + RESULTS_SLACK_KIB, (tool, begun, peak.growth)
            # The budget is free again.
            ran = await tools.call("execute", environment_id=one, code="echo on")
            assert ran["stdout"] == "on\n"


async def test_bodies_and_tasks_stay_within_their_budgets(serve):
    server = start_small(serve)
    async with server.client() as tools:
        one = (await tools.call("create_environment", language="shell"))["environment_id"]
        wait = {"environment_id": one, "code": "sleep 100", "timeout_seconds": 200}
        await tools.call("execute", environment_id=one, code=ESCAPED.format(38_000))
        before = server.resident_kib()

        def hold(count, arguments, **options):
            streams = []
            with Peak(server, before) as peak, closing(streams):
                def send():
                    streams.append(call(server, "execute", arguments, **options))

                senders = [threading.Thread(target=send) for _ in range(count)]
                for sender in senders:
                    sender.start()
                for sender in senders:
                    sender.join()
                time.sleep(3)
            return peak.growth

        growth = await asyncio.to_thread(hold, 12, wait | {"stdin": "x" * 10_000_000})
        assert growth < BODIES_KIB + SLACK_KIB, growth
        marks = {"marks": [{"a": 0} for _ in range(4900)]}
        growth = await asyncio.to_thread(hold, 60, wait, more=marks)
        assert growth < BODIES_KIB + SLACK_KIB, growth

        tasks = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
        code = "sleep 3; " + PRINT
        arguments = {"environment_id": one, "code": code, "timeout_seconds": 120, "output_bytes": 524_288}

        def start():
            with Peak(server, before) as peak:
                with closing([call(server, "execute", arguments, capabilities=tasks) for _ in range(64)]) as streams:
                    begun = answered(streams, 30)
                time.sleep(10)
            return begun, peak.growth

        begun, growth = await asyncio.to_thread(start)
        assert begun > 60 and growth < TASKS_KIB + SLACK_KIB, (begun, growth)


async def test_silent_sockets_block_no_other_caller_and_use_little_memory(open_server):
    server = open_server

    def flood(text):
        streams = []
        with Peak(server, server.resident_kib()) as peak, closing(streams):
            for _ in range(512):
                stream = connect(server)
                stream.setblocking(False)
                with contextlib.suppress(OSError):
                    stream.send(text)
                streams.append(stream)
            for _ in range(10):
                for stream in streams:
                    with contextlib.suppress(OSError):
                        stream.send(b"a" * 40_000 if text else b"")
            started = time.monotonic()
            assert server.status("/healthz")[0] == 200 and time.monotonic() - started < 5
        return peak.growth

    await asyncio.to_thread(flood, b"")
    growth = await asyncio.to_thread(flood, b"GET / HTTP/1.1\r\nX: ")
    assert growth < 512 * CONNECTION_KIB, growth
    async with server.client() as tools:
        assert (await tools.call("list_environments"))["count"] == 0
