# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Servers for guests to connect to. Each is a process on the machine that waggle runs on, which may be the nested host.

    peers.py KIND ADDRESS    serves on a free port until it is killed; prints the port; `watch` and `greet` then
                             print a line for each connection
    peers.py names ADDRESS   runs a DNS server on port 53, for the names below; prints the port, and then a line with the
                             name and the type of each question
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


def wire(name):
    return b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"


# The DNS server's addresses and aliases. A name has an address, or is an alias of another name, which may be unknown.
ZONE = {
    b"place.test": "198.41.0.4",
    b"other.test": b"place.test",
    b"metadata.test": "169.254.169.254",
    b"leads.test": b"metadata.test",
    b"dangles.test": b"gone.test",
    b"both.test": "198.41.0.4",
    b"denied.test": b"secret.corp.test",
    b"turned.test": b"1.0.0.10.in-addr.arpa",
    b"5.0.41.198.in-addr.arpa": b"5.0/25.0.41.198.in-addr.arpa",
}

# Types of records.
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, NAPTR, HTTPS, CAA = 1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 65, 257

# The names of the question and of its parent, as pointers that compress names in the data.
QUESTION, PARENT = b"\xc0\x0c", b"\xc0\x10"

# The DNS server's other records, as the data of their wire format.
RECORDS = {
    (b"both.test", AAAA): [socket.inet_pton(socket.AF_INET6, "2001:503:ba3e::2:30")],
    (b"six.test", AAAA): [socket.inet_pton(socket.AF_INET6, "::1")],
    (b"_sip._tcp.bee.test", SRV): [struct.pack("!3H", 1, 2, 5060) + wire(b"place.test")],
    (b"bee.test", MX): [b"\0\x0a\4mail" + QUESTION],
    (b"bee.test", NS): [b"\2ns" + QUESTION],
    (b"bee.test", SOA): [b"\2ns" + QUESTION + b"\2me" + PARENT + struct.pack("!5L", 7, 8, 9, 10, 11)],
    (b"bee.test", TXT): [b"\xfa" + b"%02d" % number + b"x" * 248 for number in range(20)],
    (b"bee.test", CAA): [b"\0\5issueca.test"],
    (b"bee.test", NAPTR): [b"\0\1\0\2\1S\7SIP+D2T\0\4_sip\4_tcp" + QUESTION],
    # The parameters are the mandatory keys (alpn, ipv4hint), alpn, ipv4hint and ipv6hint.
    (b"bee.test", HTTPS): [
        b"\0\1\0" + b"\0\0\0\4\0\1\0\4" + b"\0\1\0\3\2h2" + b"\0\4\0\4\xc6\x29\0\4" + b"\0\6\0\x10" + bytes(16)
    ],
    (b"4.0.41.198.in-addr.arpa", PTR): [wire(b"place.test")],
    (b"1.0.0.10.in-addr.arpa", PTR): [wire(b"secret.test")],
    (b"5.0/25.0.41.198.in-addr.arpa", PTR): [wire(b"five.test")],
    (b"place.test", TXT): [b"\5place"],
    (b"secret.corp.test", TXT): [b"\6secret"],
}
DNS_PORT = 53
# Longer answers are truncated over UDP.
DATAGRAM_BYTES = 512


def answer(question, bytes_max):
    """An answer in the wire format, with every alias on the way to the records, and an additional address."""
    # The message has one question, without compression. Its name ends with a zero byte; type and class follow.
    end = question.index(b"\0", 12) + 5
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]])
        at += 1 + question[at]
    name, kind, records = b".".join(labels).lower(), struct.unpack("!H", question[end - 4 : end - 2])[0], []
    print(name.decode(), kind, flush=True)
    while isinstance(target := ZONE.get(name), bytes):
        records.append((wire(name), CNAME, wire(target)))
        name = target
    found = RECORDS.get((name, kind), [])
    if target and kind == A:
        found = [socket.inet_aton(target)]
    exists = target or any(known == name for known, _ in RECORDS)
    records += [(wire(name), kind, data) for data in found]
    counts = len(records), 0, len(found)
    records += [(wire(b"place.test"), A, socket.inet_aton("198.41.0.9"))] * len(found)
    bodies = [owner + struct.pack("!HHIH", kind, 1, 86400, len(data)) + data for owner, kind, data in records]
    message = question[:2] + struct.pack("!5H", 0x8180 | (0 if exists else 3), 1, *counts) + question[12:end] + b"".join(bodies)
    if len(message) > bytes_max:
        return question[:2] + struct.pack("!5H", 0x8380, 1, 0, 0, 0) + question[12:end]
    return message


def serve_names(address):
    def over_tcp(client):
        with client, contextlib.suppress(OSError):
            while size := client.recv(2, socket.MSG_WAITALL):
                question = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
                message = answer(question, 65535)
                client.sendall(len(message).to_bytes(2, "big") + message)

    def accept(listener):
        while True:
            threading.Thread(target=over_tcp, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((address, DNS_PORT)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((address, DNS_PORT))
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        print(DNS_PORT, flush=True)
        while True:
            question, asker = service.recvfrom(512)
            service.sendto(answer(question, DATAGRAM_BYTES), asker)


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
