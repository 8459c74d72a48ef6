# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A real registry on loopback, Debian's docker-registry, with images of ours pushed to it."""

import base64
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from server import ROOT, free_port

USER, PASSWORD = "bee", "honey"
# bcrypt of the password: docker-registry takes no other kind.
HTPASSWD = "bee:$2b$04$JUiTVxo3aINsSIT9ASQWk.ai9AiE.yLfbPyUcyu5pVd7T9NOCv5zi\n"
READY_S = 20


class Registry:
    """A registry that asks for a password, or does not."""

    def __init__(self, folder, password=False):
        self.folder = pathlib.Path(folder)
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
        # JSON is YAML.
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
            assert time.monotonic() < deadline, "docker-registry did not get ready"
            try:
                with urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)

    def push(self, name):
        """Pushes an image of ours, and returns its reference."""
        reference = f"{self.host}/hive/{name}:v1"
        login = ["--dest-creds", f"{USER}:{PASSWORD}"] if self.password else []
        source = f"oci:{ROOT / 'target/images' / name}:latest"
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
