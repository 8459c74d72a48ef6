# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A real registry on loopback, Debian's docker-registry, with our images pushed to it."""

import base64
import json
import pathlib
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from server import ROOT, free_port

USER, PASSWORD = "bee", "honey"
# The password's bcrypt hash; docker-registry accepts no other kind of hash.
HTPASSWD = "bee:$2b$04$JUiTVxo3aINsSIT9ASQWk.ai9AiE.yLfbPyUcyu5pVd7T9NOCv5zi\n"
READY_S = 20


class Registry:
    """A registry, optionally with a password, and optionally with a TLS certificate of a private authority."""

    def __init__(self, folder, password=False, tls=False):
        self.folder = pathlib.Path(folder)
        # The authority's certificate, which clients must trust; None without TLS.
        self.authority = None
        self.host = f"127.0.0.1:{free_port()}"
        self.password = password
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "blobs")}},
            "http": {"addr": self.host},
        }
        if password:
            (self.folder / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "hive", "path": str(self.folder / "htpasswd")}}
        if tls:
            self.authority = self.folder / "authority.pem"
            settings["http"]["tls"] = self.certificate()
        # JSON is valid YAML.
        (self.folder / "config.yml").write_text(json.dumps(settings))
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.folder / "config.yml")], stdout=log, stderr=log
            )
        self.wait()

    def wait(self):
        deadline = time.monotonic() + READY_S
        while True:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "docker-registry did not become ready"
            try:
                context = ssl.create_default_context(cafile=self.authority) if self.authority else None
                scheme = "https" if self.authority else "http"
                with urllib.request.urlopen(f"{scheme}://{self.host}/v2/", timeout=5, context=context):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)

    def certificate(self):
        """Makes an authority, and a certificate that the authority signs."""
        key, request, certificate = (self.folder / name for name in ("key.pem", "request.pem", "certificate.pem"))
        authority_key = self.folder / "authority-key.pem"
        new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        ca = ["-x509", "-days", "2", "-subj", "/CN=hive authority", "-keyout", authority_key, "-out", self.authority]
        sign = "openssl x509 -req -days 2 -CAcreateserial -extfile /dev/stdin"
        files = ["-in", request, "-CA", self.authority, "-CAkey", authority_key, "-out", certificate]
        for command, extensions in [
            ([*new.split(), *ca], None),
            ([*new.split(), "-subj", "/CN=hive", "-keyout", key, "-out", request], None),
            ([*sign.split(), *files], b"subjectAltName=IP:127.0.0.1\n"),
        ]:
            subprocess.run(command, input=extensions, check=True, capture_output=True)
        return {"certificate": str(certificate), "key": str(key)}

    def push(self, name):
        """Pushes one of the project's images, and returns its reference."""
        reference = f"{self.host}/hive/{name}:v1"
        login = ["--dest-creds", f"{USER}:{PASSWORD}"] if self.password else []
        source = f"oci:{ROOT / 'target/images' / name}:latest"
        # Skopeo is not under test, so it checks neither signatures nor certificates.
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *login, source]
        subprocess.run([*command, f"docker://{reference}"], check=True)
        return reference

    def auth_file(self):
        """A file as `docker login` writes it."""
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        path = self.folder / "auth.json"
        path.write_text(json.dumps({"auths": {self.host: {"auth": auth}}}))
        return path

    def stop(self):
        self.process.terminate()
        self.process.wait()
