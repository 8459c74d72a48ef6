# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Servers for guests to connect to. Each is a process on the machine that waggle runs on, which may be the nested host.

    peers.py KIND ADDRESS    serves on a free port until it is killed; prints the port; `watch` and `greet` then
                             print a line for each connection
    peers.py names ADDRESS   runs a DNS server on port 53, for the names below
    peers.py own TARGET...   prints this machine's source address for each target, or `none` without a route

This program uses only the standard library, because the nested host has nothing else.
"""

import contextlib
import pathlib
import socket
import struct
import sys
import threading
import time

# Maximum time from the start of a server until it has printed its port.
PRINT_S = 60


def repeat(connection):
    """Reads until the peer shuts down its sending side, and then sends back what it has read."""
    question = b""
    while part := connection.recv(65536):
        question += part
    connection.sendall(b"heard " + question)


def reset(connection):
    """Reads a byte and resets the connection."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def stall(connection):
    """Reads nothing and sends nothing."""
    threading.Event().wait()


def watch(connection):
    """Sends a byte, and prints the next byte that it receives, or no byte if the connection ends."""
    connection.sendall(b"!")
    print("heard", connection.recv(1).decode(), flush=True)


def greet(connection):
    """Prints the peer's address, and answers the first data with a greeting."""
    print("came", connection.getpeername()[0], flush=True)
    connection.recv(100)
    connection.sendall(b"hello")


def banner(connection):
    """Sends a byte at once, and waits for the peer to close."""
    connection.sendall(b"!")
    connection.recv(1)


def send(connection):
    """Reads a byte and sends that number of MiB."""
    mib = bytes(1 << 20)
    for _ in range(connection.recv(1)[0]):
        connection.sendall(mib)


def take(connection):
    """Reads everything, and then confirms it."""
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b"!")


KINDS = {kind.__name__: kind for kind in (repeat, reset, stall, watch, greet, banner, send, take)}


def serve(kind, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def carry(connection):
        with connection, contextlib.suppress(OSError):
            KINDS[kind](connection)

    with socket.create_server((address, 0), family=family, backlog=512) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=carry, args=(server.accept()[0],), daemon=True).start()


# The DNS server's records. A name has an address, or is an alias of another name, which may be unknown.
ZONE = {
    b"place.test": "198.41.0.4",
    b"other.test": b"place.test",
    b"metadata.test": "169.254.169.254",
    b"leads.test": b"metadata.test",
    b"dangles.test": b"gone.test",
}
DNS_PORT = 53


def answer(question):
    """An answer in the wire format, with every alias on the way to the address."""
    # The message has one question, without compression. Its name ends with a zero byte; type and class follow.
    end = question.index(b"\0", 12) + 5
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]])
        at += 1 + question[at]
    name, records = b".".join(labels).lower(), []
    while isinstance(target := ZONE.get(name), bytes):
        records.append((name, 5, wire(target)))
        name = target
    if target and question[end - 4 : end - 2] == b"\0\1":
        records.append((name, 1, socket.inet_aton(target)))
    head = question[:2] + struct.pack("!5H", 0x8180 | (0 if target else 3), 1, len(records), 0, 0)
    bodies = [wire(owner) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data for owner, kind, data in records]
    return head + question[12:end] + b"".join(bodies)


def wire(name):
    return b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"


def serve_names(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((address, DNS_PORT))
        print(DNS_PORT, flush=True)
        while True:
            question, asker = service.recvfrom(512)
            service.sendto(answer(question), asker)


def own_address(target):
    """This machine's source address for connections to the target. Nothing is sent to the target."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect((target, 9))
        except OSError:
            return "none"
        return one.getsockname()[0]


class Peers:
    """Starts servers on the machine where `shell` runs scripts; `stop` ends all of them."""

    def __init__(self, shell, python=sys.executable, program=pathlib.Path(__file__).resolve()):
        self.shell = shell
        self.command = f"{python} -I {program}"
        self.started = []

    def __call__(self, kind, address="127.0.0.1"):
        self.started.append(Peer(self.shell, f"{self.command} {kind} {address}"))
        return self.started[-1]

    def own_addresses(self, *targets):
        """That machine's source address for each target, or None for a target without a route."""
        found = self.shell(f"{self.command} own {' '.join(targets)}").split()
        return [None if address == "none" else address for address in found]

    def stop(self):
        for peer in self.started:
            peer.stop()


class Peer:
    """A running server."""

    def __init__(self, shell, command):
        self.shell = shell
        self.log = shell("mktemp").strip()
        self.pid = int(shell(f"{command} >{self.log} 2>&1 </dev/null & echo $!"))
        deadline = time.monotonic() + PRINT_S
        while not (lines := self._lines()):
            assert time.monotonic() < deadline, f"{command} did not start"
            time.sleep(0.05)
        self.port = int(lines[0])

    def _lines(self):
        return self.shell(f"cat {self.log}").splitlines()

    def heard(self):
        """The lines that the server has printed after its port."""
        return self._lines()[1:]

    def stop(self):
        self.shell(f"kill {self.pid}; rm {self.log}")


if __name__ == "__main__":
    if sys.argv[1] == "own":
        print(*map(own_address, sys.argv[2:]))
    elif sys.argv[1] == "names":
        serve_names(sys.argv[2])
    else:
        serve(*sys.argv[1:])
