# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes, variables and images that a client chooses for its environment."""

import json
import sys

import pytest

import public_registry
from registry import Registry
from server import ROOT

MIB = 1 << 20

# Prints the processors, the memory in MiB and the disk in MiB that programs see.
SIZES = """
import os
memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
disk = os.statvfs("/home/sandbox")
print(os.cpu_count(), memory, disk.f_blocks * disk.f_frsize >> 20)
"""


async def test_a_client_chooses_the_size_and_the_variables_of_its_environment(serve):
    settings = {"RUNTIME_PYTHON_INSTALL_COMMAND": "/usr/bin/printenv", "RUNTIME_SHELL_INSTALL_COMMAND": "/usr/bin/printenv"}
    server = serve(MAX_CPUS="2", MAX_MEMORY_MB="640", MAX_ENVIRONMENTS="2", **settings).start()
    async with server.client() as tools:
        for sizes, expected in [
            ({"cpus": 3}, "cpus: 3 is invalid; must be an integer from 1 to 2, the maximum of this server; its operator can "
             "raise the maximum with WAGGLE_MAX_CPUS"),
            ({"memory_mb": 641.0}, "memory_mb: 641 is invalid; must be an integer from 128 to 640"),
            ({"memory_mb": "64"}, "memory_mb: 64 is invalid; must be an integer from 128 to 640"),
            ({"disk_mb": 4097}, "disk_mb: 4097 is invalid; must be an integer from 64 to 4096"),
            ({"cpus": "many"}, 'invalid argument "cpus": must be a number'),
            ({"environment": {"PATH": "/tmp"}}, "environment: PATH must not be set"),
            ({"environment": {"1x": ""}}, 'environment: invalid name "1x"'),
            ({"environment": {"A": "x" * 65536}}, "environment: the names and values have 65537 bytes"),
        ]:
            assert expected in await tools.refusal("create_environment", language="python", **sizes)
        assert (await tools.call("list_environments"))["count"] == 0
        variables = {"GREETING": "a 'b' $c\nä", "PORT": 80, "https_proxy": "http://proxy.example", "LD_LIBRARY_PATH": "/x"}
        sizes = {"cpus": "2", "memory_mb": 640.0, "disk_mb": 128}
        async with tools.environment("python", environment=variables, **sizes) as made:
            one = made["environment_id"]
            assert [made[name] for name in sizes] == [2, 640, 128]
            [listed] = (await tools.call("list_environments"))["environments"]
            assert [listed[name] for name in sizes] == [2, 640, 128]
            ran = await tools.call("execute", environment_id=one, code=SIZES)
            cpus, memory, disk = (int(word) for word in ran["stdout"].split())
            assert cpus == 2 and 560 < memory <= 640 and 90 < disk <= 128, ran

            code = 'printf "%s|" "$GREETING" "$PORT" "$OWN"; echo $HOME'
            own = {"PORT": "81", "OWN": "x"}
            ran = await tools.call("execute", environment_id=one, language="shell", code=code, environment=own)
            assert ran["stdout"] == "a 'b' $c\nä|81|x|/home/sandbox\n", ran
            # The variables of one call end with it.
            ran = await tools.call("execute", environment_id=one, language="shell", code=code)
            assert ran["stdout"] == "a 'b' $c\nä|80||/home/sandbox\n", ran
            wrong = await tools.refusal("execute", environment_id=one, code="1", environment={"B": "x" * 65500})
            assert "together with the environment's own, the call has 5 variables" in wrong

            ran = await tools.call("install_packages", environment_id=one, packages="PORT LD_LIBRARY_PATH")
            assert (ran["exit_code"], ran["stdout"]) == (0, "80\n/x\n"), ran
            # Root does not get variables that can name code.
            ran = await tools.call("install_packages", environment_id=one, packages="https_proxy", system=True)
            assert (ran["exit_code"], ran["stdout"]) == (0, "http://proxy.example\n"), ran
            for name in ("LD_LIBRARY_PATH", "GREETING"):
                ran = await tools.call("install_packages", environment_id=one, packages=name, system=True)
                assert (ran["exit_code"], ran["stdout"]) == (1, ""), ran
        # Without a choice, the environment has the server's defaults.
        async with tools.environment("shell") as made:
            assert [made[name] for name in sizes] == [1, 512, 4096]
    # The values may be secrets.
    assert "proxy.example" not in server.output()


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "registry").mkdir()
    made = Registry(tmp_path / "registry", password=True)
    yield made
    made.stop()


@pytest.mark.outside("runs a registry on this machine")
async def test_a_client_chooses_an_image_that_the_operator_names(serve, registry, tmp_path, monkeypatch):
    foreign, shell = registry.push("foreign"), registry.push("shell")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(registry.auth_file()))
    settings = {"IMAGE_CACHE_DIR": str(tmp_path / "cache"), "MAX_ENVIRONMENTS": "2"}
    server = serve(ALLOWED_IMAGES=f"{registry.host}/hive/for*:v1, any", **settings)
    server.set_hosts(bee="127.0.0.1")
    server.start()
    port = registry.host.rpartition(":")[2]

    async def refused(tools, reference):
        result = await tools.raw("create_environment", language="shell", image=reference)
        assert result.is_error, result
        return result.content[0].text

    async with server.client() as tools:
        for reference in ("oci:/srv/images/shell", "oci-archive:/x.tar", "/srv/x", "file:///srv/x", "docker://x", "a b", "A/b"):
            assert "image: invalid image reference" in await refused(tools, reference)
        async with tools.environment("shell", image=foreign) as made:
            assert made["image"] == foreign
            one = made["environment_id"]
            ran = await tools.call("execute", environment_id=one, code="busybox | head -n 1")
            assert ran["stdout"].startswith("BusyBox"), ran
            assert await tools.fault("execute", environment_id=one, language="python", code="1") == "runtime_unavailable"
            assert [listed["image"] for listed in (await tools.call("list_environments"))["environments"]] == [foreign]
        # Other images of the same registry have no right to its private address, under whatever name.
        for reference in (shell, f"localhost:{port}/hive/foreign:v1", f"bee.test:{port}/hive/foreign:v1"):
            assert "the image's registry cannot be reached at a public address" in await refused(tools, reference)
    # What the operator's credentials have pulled is not there for clients whose image no pattern names.
    other = serve(ALLOWED_IMAGES="any", **settings).start()
    async with other.client() as tools:
        assert "cannot be reached at a public address" in await refused(tools, foreign)
    last = serve(ALLOWED_IMAGES="ghcr.io/bees/*", **settings).start()
    async with last.client() as tools:
        text = await refused(tools, foreign)
        assert f"image: {foreign} is not allowed on this server; allowed: ghcr.io/bees/*" in text


@pytest.mark.outside("the server has a network of its own here")
async def test_a_clients_image_never_leads_to_a_private_address(serve, tmp_path, monkeypatch):
    public_registry.make(tmp_path)
    credentials = {"auth": "YmVlOmhvbmV5"}
    hosts = [f"{public_registry.PUBLIC}:{port}" for port in public_registry.CHALLENGES] + ["hive.test", public_registry.PUBLIC]
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {host: credentials for host in hosts}}))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setenv("LAYOUT", str(ROOT / "target/images/foreign"))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("REGISTRY", public_registry.__file__)
    # Such pulls use no proxy, which would look names up itself.
    monkeypatch.setenv("HTTPS_PROXY", f"http://{public_registry.PRIVATE}:443")
    server = serve(IMAGE_CACHE_DIR=str(tmp_path / "cache"))
    script = public_registry.NETWORK
    server.through = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, tmp_path]

    def record(address):
        file = tmp_path / f"{address}.record"
        return file.read_text().splitlines() if file.exists() else []

    async with server.conversation() as tools:
        for reference, reason in [
            # The registry's own address.
            (f"{public_registry.PRIVATE}/x", "cannot be reached at a public address"),
            (f"{public_registry.HOST}/x", "cannot be reached at a public address"),
            ("inside.test/x", "cannot be reached at a public address"),
            ("host.test/x", "cannot be reached at a public address"),
            ("127.0.0.1/x", "cannot be reached at a public address"),
            ("nowhere.test/x", "cannot be reached at a public address"),
            # Redirects.
            (f"{public_registry.PUBLIC}/to-address", "cannot be reached at a public address"),
            (f"{public_registry.PUBLIC}/to-name", "cannot be reached at a public address"),
            (f"{public_registry.PUBLIC}/to-host", "cannot be reached at a public address"),
            (f"{public_registry.PUBLIC}/to-plain", "cannot be reached at a public address"),
            # The token service.
            (f"{public_registry.PUBLIC}:5002/x", "denied the pull; only images that the operator names"),
            (f"{public_registry.PUBLIC}:5003/x", "cannot be reached at a public address"),
            # A password is required, and the server has it.
            (f"{public_registry.PUBLIC}:5001/good", "denied the pull; only images that the operator names"),
        ]:
            result = await tools.raw("create_environment", language="shell", image=reference)
            assert result.is_error and reason in result.content[0].text, (reference, result.content[0].text)
        # A name with addresses of both kinds leads to the public one, and blobs may be elsewhere.
        async with tools.environment("shell", image="mixed.test/good:v1") as made:
            ran = await tools.call("execute", environment_id=made["environment_id"], code="busybox | head -n 1")
            assert ran["stdout"].startswith("BusyBox"), ran
    assert record("0.0.0.0") == []
    requests = [line for line in record(public_registry.PUBLIC) if not line.endswith("connection")]
    assert any("/to-address/manifests/" in line for line in requests)
    assert any("/good/blobs/" in line for line in requests)
    assert all(line.endswith(" None") for line in requests), requests
    # An image that the operator names may be there.
    monkeypatch.delenv("HTTPS_PROXY")
    server.settings["ALLOWED_IMAGES"] = "inside.test/*"
    async with server.conversation() as tools:
        result = await tools.raw("create_environment", language="shell", image="inside.test/x")
        assert "the image's registry does not have the image" in result.content[0].text
    assert any("/v2/x/manifests/" in line for line in record("0.0.0.0"))
