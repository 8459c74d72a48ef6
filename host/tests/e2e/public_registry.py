# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A registry that is hostile to a server that pulls for its clients. It has a public address, in a network of its own, and
tries to lead the server to private addresses. Run as a program:

    public_registry.py listen ADDRESS FOLDER [LAYOUT]

writes each connection and request into a file in the folder. With a layout, it serves the image of the layout.
"""

import http.server
import json
import pathlib
import ssl
import subprocess
import sys
import threading
import time

PUBLIC, PRIVATE, HOST = "11.22.33.44", "10.9.9.9", "11.22.33.1"
# The challenge of the registry on each port.
CHALLENGES = {
    443: None,
    5001: 'Basic realm="hive"',
    5002: f'Bearer realm="https://{PRIVATE}/token",service="hive"',
    5003: 'Bearer realm="https://inside.test/token",service="hive"',
}
# Redirects of manifests, by repository.
MOVED = {
    "to-address": f"https://{PRIVATE}/",
    "to-name": "https://inside.test/",
    "to-host": f"https://{HOST}/",
    "to-plain": "http://hive.test/",
}
NAMES = {"hive": PUBLIC, "inside": PRIVATE, "mixed": f"{PRIVATE} {PUBLIC}", "host": HOST}

# Runs a command, the arguments after the first, in a network of its own. The network has a private address and a public
# one; at the other end of a cable is the registry. The first argument is the folder with the files of `make`.
NETWORK = f"""
rm -f "$0"/*.ready
mount --bind "$0/hosts" /etc/hosts
ip link set lo up && ip address add {PRIVATE}/32 dev lo
unshare --net "$PYTHON" "$REGISTRY" listen {PUBLIC} "$0" "$LAYOUT" &
there=$!
while [ "$(readlink /proc/$there/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link add here type veth peer name eth0 netns $there
ip address add {HOST}/24 dev here && ip link set here up
"$PYTHON" "$REGISTRY" listen 0.0.0.0 "$0" &
here=$!
while [ ! -e "$0/{PUBLIC}.ready" ] || [ ! -e "$0/0.0.0.0.ready" ]; do sleep 0.05; done
"$@"
status=$?
kill $there $here
exit $status
"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.record(f"{self.server.port} {self.path} {self.headers.get('Authorization')}")
        challenge, layout = CHALLENGES[self.server.port], self.server.layout
        if challenge and not self.path.startswith("/token"):
            self.answer(401, **{"WWW-Authenticate": challenge})
        elif self.path == "/v2/":
            self.answer(200)
        elif (repository := self.path.split("/")[2]) in MOVED:
            self.answer(302, Location=MOVED[repository])
        elif layout and "/manifests/" in self.path:
            [manifest] = json.loads((layout / "index.json").read_bytes())["manifests"]
            content = self.blob(manifest["digest"])
            self.answer(200, content, **{"Content-Type": manifest["mediaType"], "Docker-Content-Digest": manifest["digest"]})
        elif layout and self.headers["Host"] != "hive.test":
            # Registries keep their blobs elsewhere.
            self.answer(302, Location=f"https://hive.test{self.path}")
        elif layout:
            self.answer(200, self.blob(self.path.rpartition("/")[2]))
        else:
            self.answer(404)

    def blob(self, digest):
        return (self.server.layout / "blobs" / digest.replace(":", "/")).read_bytes()

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Registry(http.server.ThreadingHTTPServer):
    def __init__(self, address, port, folder, layout):
        super().__init__((address, port), Handler)
        self.port, self.layout, self.file = port, layout and pathlib.Path(layout), folder / f"{address}.record"
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    def get_request(self):
        connection, peer = super().get_request()
        self.record(f"{self.port} connection")
        # The handshake takes place in the connection's own thread.
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def record(self, line):
        with open(self.file, "a") as record:
            record.write(line + "\n")

    def handle_error(self, *_):
        pass


def make(folder):
    """Makes an authority, a certificate that the authority signs, and a hosts file."""
    key, request, certificate = (folder / name for name in ("key.pem", "request.pem", "certificate.pem"))
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    names = ",".join([f"IP:{address}" for address in (PUBLIC, PRIVATE, HOST)] + [f"DNS:{name}.test" for name in NAMES])
    authority = ["-keyout", folder / "authority-key.pem", "-out", folder / "authority.pem"]
    signed = ["-in", request, "-CA", folder / "authority.pem", "-CAkey", folder / "authority-key.pem", "-out", certificate]
    for command, extensions in [
        ([*new.split(), "-x509", "-days", "2", "-subj", "/CN=hive authority", *authority], None),
        ([*new.split(), "-subj", "/CN=hive", "-keyout", key, "-out", request], None),
        (["openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", "/dev/stdin", *signed],
         f"subjectAltName={names}\n".encode()),
    ]:
        subprocess.run(command, input=extensions, check=True, capture_output=True)
    lines = [f"{address} {name}.test\n" for name, addresses in NAMES.items() for address in addresses.split()]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))


def listen(address, folder, layout=None):
    folder = pathlib.Path(folder)
    if address == PUBLIC:
        # The cable comes after this process has its own network.
        while subprocess.run(["ip", "link", "set", "eth0", "up"], capture_output=True, check=False).returncode:
            time.sleep(0.05)
        for command in (["link", "set", "lo", "up"], ["address", "add", f"{PUBLIC}/24", "dev", "eth0"]):
            subprocess.run(["ip", *command], check=True)
    servers = [Registry(address, port, folder, layout) for port in CHALLENGES]
    for server in servers:
        threading.Thread(target=server.serve_forever).start()
    (folder / f"{address}.ready").touch()


if __name__ == "__main__":
    listen(*sys.argv[2:])
