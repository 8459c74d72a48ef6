# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Package repositories for the tests, served on loopback, and images whose package managers use only them."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import pathlib
import shutil
import ssl
import subprocess
import tarfile
import threading
import zipfile

from layouts import Layer
from server import ROOT

# The address at which guests reach their host's loopback.
HOST = "10.0.77.1"
NAME = "waggle-bee"
VERSION = "1.2.3"
# The names of all packages. Each exists for each package manager except rpm's, which has only the first.
NAMES = [NAME, "waggle-ant", "waggle-fly"]
# Requests for a path that contains this word get no answer; the file ASKED appears.
SILENT = "silent"
ASKED = "asked"


@contextlib.contextmanager
def serve(folder):
    """Serves a folder with wheels, npm packages, Debian packages and an rpm; yields the port."""
    with serving(folder) as port:
        for name in NAMES:
            make_wheel(folder, name)
            make_npm_package(folder, port, name)
            make_debian_package(folder, name)
        make_debian_package(folder, "waggle++", "preinst")
        # While they are unpacked, the first waits until a file exists. The second does so if another file exists, and
        # otherwise kills dpkg and apt-get.
        wait = "touch /tmp/unpacks; while [ ! -e /tmp/go-on ]; do sleep 0.1; done"
        make_debian_package(folder, "waggle-slow", "preinst", wait)
        kill = "read -r line </proc/$PPID/stat; set -- ${line##*) }; kill -9 $2 $PPID"
        make_debian_package(folder, "waggle-killer", "preinst", f"if [ -e /tmp/wait ]; then {wait}; else {kill}; fi")
        take_rpms(folder)
        yield port


@contextlib.contextmanager
def serving(folder, tls=None):
    """Serves a folder over HTTP; yields the port."""

    ended = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def do_GET(self):
            if SILENT not in self.path:
                return super().do_GET()
            (pathlib.Path(folder) / ASKED).touch()
            return ended.wait()

        def log_message(self, *_arguments):
            """Discards the line."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serve_tls(folder):
    """Serves a file and an empty git repository over TLS; yields the port, and the certificate to trust for it."""
    site = folder / "site"
    (site / "bee.git/info").mkdir(parents=True)
    (site / "hello").write_text("hum")
    # The files that git's dumb HTTP protocol requests.
    (site / "bee.git/info/refs").write_text(f"{'0123456789' * 4}\trefs/heads/hum\n")
    (site / "bee.git/HEAD").write_text(f"{'0123456789' * 4}\n")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bee -addext subjectAltName=IP:{HOST}"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(site, context) as port:
        yield port, certificate


def make_wheel(folder, name):
    """Adds a pure wheel (PEP 427) to a simple index (PEP 503)."""
    place = folder / "simple" / name
    place.mkdir(parents=True)
    module = name.replace("-", "_")
    info = f"{module}-{VERSION}.dist-info"
    files = {
        f"{module}.py": "SAYS = 'hum'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def line(path, text):
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(text)}\n"

    files[f"{info}/RECORD"] = "".join(line(*file) for file in files.items()) + f"{info}/RECORD,,\n"
    wheel = f"{module}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(place / wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    (place / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')


def make_npm_package(folder, port, name):
    """Adds an npm registry's answer for a package, and the package's archive in the form of `npm pack`."""
    place = folder / "npm"
    place.mkdir(exist_ok=True)
    manifest = {"name": name, "version": VERSION, "main": "index.js"}
    files = {"package.json": json.dumps(manifest), "index.js": "exports.says = 'hum';\n"}
    tarball = folder / f"{name}-{VERSION}.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for path, text in files.items():
            add(archive, f"package/{path}", text)
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    dist = {"tarball": f"http://{HOST}:{port}/{tarball.name}", "integrity": f"sha512-{digest}"}
    known = {"name": name, "dist-tags": {"latest": VERSION}, "versions": {VERSION: manifest | {"dist": dist}}}
    (place / name).write_text(json.dumps(known))


def make_debian_package(folder, name, kind="postinst", code=""):
    """Adds a package to a flat repository. A `postinst` makes a user of the package's name, which owns its program."""
    place = folder / "apt"
    tree = place / name
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: tests <tests@localhost>\nDescription: hums\n"
    (tree / "DEBIAN/control").write_text(control)
    script = tree / "DEBIAN" / kind
    if kind == "postinst":
        code = f"adduser --system --group --quiet {name} || useradd --system {name}\nchown {name} /usr/bin/{name}"
    script.write_text(f"#!/bin/sh\nset -e\n{code}\n")
    script.chmod(0o755)
    program = tree / "usr/bin" / name
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho hum\n")
    program.chmod(0o755)
    package = place / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, package], check=True, capture_output=True)
    data = package.read_bytes()
    entry = f"Filename: ./{package.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    with open(place / "Packages", "a") as packages:
        packages.write(control + entry)


def take_rpms(folder):
    """Extracts the rpm repository from the image `rpm`."""
    layout = ROOT / "target/images/rpm"
    [manifest] = json.loads((layout / "index.json").read_bytes())["manifests"]
    # The repository is the image's last layer.
    layer = json.loads(blob(layout, manifest["digest"]).read_bytes())["layers"][-1]
    with tarfile.open(blob(layout, layer["digest"])) as archive:
        archive.extractall(folder, filter="data")


def image(name, folder, port, changed=None):
    """A copy of one of the project's images, whose package managers use the server on that port of the host.

    `changed` maps the paths of further files to their text; None deletes the file.
    """
    url = f"http://{HOST}:{port}"
    rpms = f"[bee]\nname=bee\nbaseurl={url}/srv/repository\ngpgcheck=0\nautorefresh=1\n"
    settings = {
        "etc/pip.conf": f"[global]\nindex-url = {url}/simple/\ntrusted-host = {HOST}\nretries = 0\n",
        "usr/local/lib/node_modules/npm/npmrc": f"registry={url}/npm/\nfetch-retries=0\n",
        "etc/apt/sources.list": f"deb [trusted=yes] {url}/apt ./\n",
        "etc/yum.repos.d/bee.repo": rpms,
        "etc/zypp/repos.d/bee.repo": rpms,
        **(changed or {}),
    }
    layout = folder / name
    shutil.copytree(ROOT / "target/images" / name, layout)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for path, text in settings.items():
            add(archive, path, text)
    add_layer(layout, layer.getvalue())
    return f"oci:{layout}"


def add(archive, name, text):
    entry = tarfile.TarInfo(name)
    if text is None:
        # A whiteout: it deletes a file of a lower layer.
        folder, _, file = name.rpartition("/")
        entry.name, text = f"{folder}/.wh.{file}", ""
    entry.size, entry.mode = len(text.encode()), 0o755 if text.startswith("#!") else 0o644
    archive.addfile(entry, io.BytesIO(text.encode()))


def blob(layout, digest):
    return layout / "blobs" / digest.replace(":", "/")


def add_layer(layout, layer):
    """Puts an uncompressed layer on top of an image."""

    def change(manifest, config):
        added = put(layout, layer)
        config["rootfs"]["diff_ids"].append(added["digest"])
        config.pop("history", None)
        manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", **added})

    change_image(layout, change)


def small_image(layout, fill):
    """Makes a small image with a layer to which `fill` adds entries."""
    shutil.copytree(ROOT / "target/images/foreign", layout)
    layer = Layer()
    fill(layer)
    add_layer(layout, layer.end())
    return f"oci:{layout}"


def reconfigure(layout, **settings):
    """Changes settings of an image's configuration."""
    change_image(layout, lambda manifest, config: config["config"].update(settings))


def change_image(layout, change):
    """Changes manifests and their configurations, and updates the digests that refer to them."""
    index = json.loads((layout / "index.json").read_bytes())
    for descriptor in index["manifests"]:
        manifest = json.loads(blob(layout, descriptor["digest"]).read_bytes())
        config = json.loads(blob(layout, manifest["config"]["digest"]).read_bytes())
        change(manifest, config)
        manifest["config"] |= put(layout, json.dumps(config).encode())
        descriptor |= put(layout, json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))


def put(layout, data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blob(layout, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}
