# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Images from a real registry: pulled, used, kept, listed and removed."""

import contextlib
import filecmp
import json
import os
import re
import subprocess
import time

import pytest

from registry import PASSWORD, USER, Registry
from server import BINARY, ROOT

pytestmark = pytest.mark.outside("runs a registry on this machine")


# The kills are spread over the duration of a whole pull.
KILLS = 8


@pytest.fixture
def registries(tmp_path):
    """Makes registries that stop when the test ends."""
    running = []

    def make(**how):
        folder = tmp_path / f"registry-{len(running)}"
        folder.mkdir()
        running.append(Registry(folder, **how))
        return running[-1]

    yield make
    for registry in running:
        registry.stop()


@pytest.fixture
def image(tmp_path):
    """Runs `waggle image` on the test's own cache; returns its output, or with `fails` its error."""

    def run(*words, fails=False, **environment):
        command = [BINARY, "image", *words, "--image-cache-dir", str(tmp_path / "cache")]
        known = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=known | environment)
        assert (ran.returncode != 0) == fails, ran.stderr
        assert PASSWORD not in ran.stdout + ran.stderr
        return ran.stderr if fails else ran.stdout

    return run


async def echoed(server, text):
    """The output of `echo` in a new environment of the server."""
    async with server.client() as tools, tools.environment("shell") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code=f"echo {text}")
        return ran["stdout"].strip()


async def test_an_image_is_pulled_used_and_kept(serve, registries, image, tmp_path):
    registry = registries()
    reference = registry.push("foreign")
    cache = str(tmp_path / "cache")
    server = serve(IMAGE_SHELL=reference, IMAGE_CACHE_DIR=cache).start()
    assert server.status("/readyz")[0] == 200
    assert await echoed(server, "pulled") == "pulled"
    # A cached image needs no registry.
    registry.stop()
    assert await echoed(server, "kept") == "kept"
    async with server.client() as tools, tools.environment("shell"):
        (listed,) = json.loads(image("ls", "--json"))
        assert listed["references"] == [reference]
        assert listed["users"] == [{"pid": server.process.pid, "uses": 1}]
        assert "in use by process" in image("rm", reference, fails=True)
        assert json.loads(image("prune", "--all", "--json"))["images"] == 0
        assert f"process {server.process.pid}" in image("ls")
    assert json.loads(image("rm", reference, "--json"))["images"] == 1
    assert json.loads(image("ls", "--json")) == []
    fault = image("pull", reference, fails=True)
    assert "failed to reach the registry" in fault and "skopeo copy" in fault


async def test_a_create_reports_the_progress_of_its_pull(serve, registries, tmp_path):
    reference = registries().push("shell")
    server = serve(IMAGE_SHELL=reference, IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    heard = []

    async def listen(progress, total, message):
        heard.append((progress, total, message))

    async with server.client() as tools:
        made = await tools.client.call_tool("create_environment", {"language": "shell"}, progress_callback=listen)
        assert made.structured_content["status"] == "running"
        told = [message for _, _, message in heard]
        pulled = [re.search(r"^pulling .*\(([\d.]+) of ([\d.]+) MB\)", message) for message in told]
        parts = [(float(found[1]), float(found[2])) for found in pulled if found]
        assert parts and all(part <= whole for part, whole in parts) and parts == sorted(parts), told
        for stage in ["merging the image's layers (", "booting the machine"]:
            assert any(message.startswith(stage) for message in told), told
        progress = [progress for progress, _, _ in heard]
        assert progress == sorted(set(progress)) and progress[-1] >= 2, heard
        assert {total for _, total, _ in heard} == {3}, heard
        await tools.call("destroy_environment", environment_id=made.structured_content["environment_id"])


async def test_a_registry_with_a_password_requires_it(serve, registries, image):
    registry = registries(password=True)
    reference = registry.push("foreign")
    no_credentials = {"HOME": "/nonexistent", "REGISTRY_AUTH_FILE": "/nonexistent/auth.json"}
    fault = image("pull", reference, fails=True, **no_credentials)
    assert f"log in with `docker login {registry.host}`" in fault
    pulled = json.loads(image("pull", reference, "--json", REGISTRY_AUTH_FILE=str(registry.auth_file())))
    assert pulled["references"] == [reference]
    # Without a terminal, the command logs its progress instead of drawing a bar; results go to standard output.
    assert image("inspect", reference, "--json").startswith("{")


def test_a_private_authority_must_be_trusted(registries, image):
    registry = registries(password=True, tls=True)
    reference = registry.push("foreign")
    known = {"REGISTRY_AUTH_FILE": str(registry.auth_file())}
    # A registry on this machine may use plain HTTP, but if it uses TLS, its certificate must be trusted.
    fault = image("pull", reference, fails=True, **known)
    assert f"the certificate of the registry {registry.host} is not trusted" in fault and "SSL_CERT_FILE" in fault
    assert "UnknownIssuer" in fault
    pulled = json.loads(image("pull", reference, "--json", SSL_CERT_FILE=str(registry.authority), **known))
    assert pulled["references"] == [reference]


HELPER = """#!/bin/sh
# Implements docker's credential helper protocol: the action is the argument, the server is on stdin.
read -r server
echo "$1 $server" >>"$0.asked"
[ "$server" = SERVER ] || { echo 'credentials not found in native keychain'; exit 1; }
echo '{"ServerURL":"SERVER","Username":"USER","Secret":"PASSWORD"}'
"""


@pytest.mark.parametrize("entry", [{"credHelpers": {"HOST": "hive"}}, {"credsStore": "hive"}], ids=["one registry", "all registries"])
def test_a_credential_helper_is_asked_and_its_output_is_hidden(registries, image, tmp_path, entry):
    registry, other = registries(password=True), registries(password=True)
    reference, unknown = registry.push("foreign"), other.push("foreign")
    (tmp_path / "config.json").write_text(json.dumps(entry).replace("HOST", registry.host))
    helper = tmp_path / "docker-credential-hive"
    helper.write_text(HELPER.replace("SERVER", registry.host).replace("USER", USER).replace("PASSWORD", PASSWORD))
    helper.chmod(0o755)
    known = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DOCKER_CONFIG": str(tmp_path),
        "HOME": "/nonexistent",
        "XDG_RUNTIME_DIR": "/nonexistent",
        "RUST_LOG": "debug",
    }
    assert json.loads(image("pull", reference, "--json", **known))["references"] == [reference]
    assert (tmp_path / "docker-credential-hive.asked").read_text() == f"get {registry.host}\n"
    fault = image("pull", unknown, fails=True, **known)
    assert "no credentials for the registry were found" in fault


def test_built_images_can_be_pushed_to_a_registry(registries, image):
    registry = registries(password=True)
    known = {"REGISTRY_AUTH_FILE": str(registry.auth_file())}
    command = [ROOT / "images/build", "--push", f"{registry.host}/hive", "foreign"]
    subprocess.run(command, check=True, env=os.environ | known, timeout=300)
    pulled = json.loads(image("pull", f"{registry.host}/hive/foreign:latest", "--json", **known))
    built = json.loads((ROOT / "target/images/foreign/index.json").read_bytes())
    assert pulled["digest"] == built["manifests"][0]["digest"]


async def test_images_can_be_pulled_at_the_start(serve, registries, image, tmp_path):
    registry = registries()
    reference = registry.push("foreign")
    server = serve(IMAGE_SHELL=reference, IMAGE_CACHE_DIR=str(tmp_path / "cache"), PULL_IMAGES="at-start").start()
    while f"an image is ready image=\"{reference}\"" not in server.output():
        assert server.process.poll() is None
        assert "could not be pulled" not in server.output()
    assert json.loads(image("inspect", reference, "--json"))["merged_bytes"] > 0


def test_a_pull_that_fills_the_disk_says_so_and_leaves_nothing(registries, image, tmp_path):
    reference = registries().push("foreign")
    cache = tmp_path / "cache"
    cache.mkdir()
    stored = sum(path.stat().st_size for path in (ROOT / "target/images/foreign/blobs/sha256").iterdir())
    # Too little space for the layers, and then enough for them but not for the merged image.
    for room, step in [(stored // 2, "failed to pull the image"), (stored + (256 << 10), "failed to merge the layers")]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", cache], check=True)
        try:
            fault = image("pull", reference, "--disk-reserve-mb", "0", fails=True)
            assert step in fault and "No space left on device" in fault
            assert list(cache.glob("*/.draft-*")) == []
            assert list(cache.glob("merged-*/*.erofs")) == []
        finally:
            subprocess.run(["umount", cache], check=True)
    image("pull", reference)


def test_a_pull_leaves_the_reserve_free_and_removes_no_other_image(registries, image, tmp_path):
    registry = registries()
    small, large = registry.push("foreign"), registry.push("shell")
    cache = tmp_path / "cache"
    cache.mkdir()

    def images():
        return json.loads(image("ls", "--json"))

    def free_mib():
        found = os.statvfs(cache)
        return found.f_bavail * found.f_frsize >> 20

    image("pull", large)
    ((merged, blobs),) = [(one["merged_bytes"], one["pulled_bytes"]) for one in images()]
    image("prune", "--all")
    assert 2 * merged > 3 * blobs
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * merged}", "tmpfs", cache], check=True)
    try:
        image("pull", small, "--disk-reserve-mb", "1")
        before, free = images(), free_mib()
        # A merge needs at least three times the space of the layers. Less is refused before the download; more can still
        # be too little, and then the merge ends before the reserve is used, and its layers are removed.
        needed = -(-3 * blobs >> 20)
        for reserve, expected in [(free - needed + 4, "MiB more are needed"), (free - needed - 4, "must remain free\n")]:
            fault = image("pull", large, "--disk-reserve-mb", str(reserve), fails=True)
            assert f"a reserve of {reserve} MiB must remain free" in fault and expected in fault, fault
            assert "hint: free disk space (`waggle image prune --all`" in fault and "WAGGLE_DISK_RESERVE_MB" in fault
            assert list(cache.glob("*/.draft-*")) == [] and free_mib() >= free - 1
            assert [one for one in images() if one["references"] == [small]] == before
        image("pull", large, "--disk-reserve-mb", "1")
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_pull_can_be_killed_at_any_point(registries, image, tmp_path):
    reference = registries().push("shell")

    def start(cache):
        command = [BINARY, "image", "pull", reference, "--image-cache-dir", str(tmp_path / cache)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def merged(cache):
        return list((tmp_path / cache).glob("merged-*/*.erofs"))

    began = time.monotonic()
    assert start("other").wait() == 0
    took = time.monotonic() - began
    (whole,) = merged("other")
    for part in range(1, KILLS):
        # Each pull continues where the previous one was killed, so later pulls are killed while they merge.
        killed = start("cache")
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(took * part / KILLS)
        killed.kill()
        killed.wait()
        listed = json.loads(image("ls", "--json"))
        assert all(one["references"] in ([], [reference]) for one in listed), listed
        assert all(filecmp.cmp(found, whole, shallow=False) for found in merged("cache"))
    image("pull", reference)
    # No file of a killed pull is left, under whatever name.
    assert {path.name for path in (tmp_path / "cache").rglob(".*")} == {".lock"}
    # The same image results in the same file, bit for bit.
    (found,) = merged("cache")
    assert filecmp.cmp(found, whole, shallow=False)
    assert list((tmp_path / "cache").glob("*/.draft-*")) == []
