# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The same checks with the official reference server ("everything"). A client that fails them as well fails by itself."""

import http.server
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import checks
from driver import Died, Driver

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from server import ROOT, free_port  # noqa: E402

EVERYTHING = ROOT / "target/e2e-node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"


class Everything:
    """The reference server, behind a forwarder that records what clients send."""

    def __init__(self):
        self.port = free_port()
        self.process = None
        self.recorder = Recorder(self.port)
        self.url = f"http://127.0.0.1:{self.recorder.port}/mcp"

    def start(self):
        self.process = subprocess.Popen(
            [ROOT / "target/e2e-venv/bin/node", EVERYTHING, "streamableHttp"],
            env=os.environ | {"PORT": str(self.port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Its own group, because this node is a script that starts Node.
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert time.monotonic() < deadline and self.process.poll() is None, "the reference server did not start"
            time.sleep(0.1)
        return self

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while not socket.socket().connect_ex(("127.0.0.1", self.port)):
            time.sleep(0.1)

    def restart(self):
        self.stop()
        self.start()


class Recorder:
    """Forwards connections, and keeps what clients send."""

    def __init__(self, target):
        self.sent = bytearray()
        # What clients had sent over each of the connections that they have closed.
        self.closed = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target = target
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._forward, args=[client], daemon=True).start()

    def _forward(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        sent = bytearray()
        with client, server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    try:
                        data = ready.recv(65536)
                        if data and ready is client:
                            self.sent += data
                            sent += data
                        elif b"No valid session ID" in data:
                            # The specification wants 404 for an unknown session, and so do clients.
                            data = data.replace(b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 404 Not Found", 1)
                        (server if ready is client else client).sendall(data)
                    except OSError:
                        data = b""
                    if not data:
                        if ready is client:
                            self.closed.append(bytes(sent))
                        return


def fails(check, client, everything):
    """Whether the client fails the check with the reference server, too. None if that server cannot show it."""
    if check == "wrong token":
        return fails_unauthorized(client)
    try:
        driver = Driver(client, everything.url)
        try:
            if "failed" in driver.answer(120):
                return True
            return ANALOGUES[check](driver, everything) if check in ANALOGUES else None
        finally:
            driver.stop()
    except Died:
        return True


def connect(driver, everything):
    known = any("echo" in name for name in driver.do(do="tools")["tools"])
    return not known or checks.complaint(driver.client, everything.url, "echo", message="hello") is not None


def echo(driver, _everything):
    answer = driver.call("echo", timeout_s=60, message="hello")
    return bool(answer.get("error")) or "Echo: hello" not in answer["shown"]


def picture(driver, _everything):
    return not driver.call("get-tiny-image").get("picture")


def error(driver, _everything):
    answer = driver.call("echo")
    return bool(answer.get("error")) or not answer["shown"]


def long_call(driver, _everything):
    answer = driver.call("trigger-long-running-operation", duration=20, steps=5)
    return bool(answer.get("error")) or "completed" not in answer["shown"]


def cancel(driver, everything):
    closed, sent = len(everything.recorder.closed), len(everything.recorder.sent)
    arguments = {"duration": 60, "steps": 5}
    driver.do(do="cancel", tool="trigger-long-running-operation", arguments=arguments, after=5)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        recorder = everything.recorder
        if b"notifications/cancelled" in recorder.sent[sent:] or b"DELETE /mcp" in recorder.sent[sent:]:
            return False
        # Unused connections are closed as well. Before this version, closing cancels nothing.
        used = (b"trigger-long-running-operation", b"2026-07-28")
        if any(all(part in carried for part in used) for carried in recorder.closed[closed:]):
            return False
        time.sleep(0.5)
    return True


def restart(driver, everything):
    # Some clients connect with their first call.
    echo(driver, everything)
    everything.restart()
    return echo(driver, everything) and echo(driver, everything)


ANALOGUES = {
    "connect": connect,
    "create": echo,
    "execute": echo,
    "text": echo,
    "picture": picture,
    "tool error": error,
    "time-out": error,
    "failed start": error,
    "20 s call": long_call,
    "cancel": cancel,
    "restart": restart,
}


class Unauthorized(http.server.BaseHTTPRequestHandler):
    """Answers every request with 401, as RFC 6750 wants it."""

    def do_POST(self):
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Bearer error="invalid_token"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_DELETE = do_POST

    def log_message(self, *_):
        pass


def fails_unauthorized(client):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unauthorized)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        return wrong_token(client, f"http://127.0.0.1:{server.server_port}/mcp") is not None
    finally:
        server.shutdown()


def wrong_token(client, url):
    """None if a client with a wrong token says that the server rejects it, else what was seen."""
    driver = Driver(client, url, "a-token-that-nobody-has")
    try:
        answer = driver.answer(60)
        if answer.get("ready"):
            # This client connects with its first request.
            answer = driver.do(60, do="call", tool="list_environments", arguments={})
        found = f"{answer} {''.join(driver.noise)}"
    except Died as died:
        found = f"{died} {''.join(driver.noise)}"
    finally:
        driver.stop()
    words = ("401", "token", "unauthorized", "authorization", "authentication", "auth_required")
    return None if any(word in found.lower() for word in words) else f"nothing about the token in {found[:200]!r}"
