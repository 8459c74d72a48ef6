# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Package managers in guests install what rules allow, report missing rules, and trust the operator's certificates."""

import base64
import contextlib
import struct

import pytest

import repositories
from package_index import Index
from repositories import HOST
from server import image
from test_network_policy import probe

pytestmark = pytest.mark.outside("serves files from this machine")

# The address that rules contain if guests are to connect to HOST.
LOOPBACK = "127.0.0.1"


@pytest.fixture
def installing(tmp_path, serve):
    """Makes a server whose images use only a package repository on this machine's loopback."""
    with contextlib.ExitStack() as stack:
        (tmp_path / "repository").mkdir()
        port = stack.enter_context(repositories.serve(tmp_path / "repository"))

        def make(rules, changed=None, **images):
            images = images or {"PYTHON": "python", "NODE": "node", "SHELL": "shell"}
            layouts = {f"IMAGE_{runtime}": repositories.image(name, tmp_path, port, changed) for runtime, name in images.items()}
            return serve(IMAGE_CACHE_DIR=str(tmp_path / "cache"), EGRESS=rules.format(port=port), **layouts).start()

        yield make


PROGRAMS = {
    "python": "import waggle_bee, sys; print(waggle_bee.SAYS, sys.prefix)",
    "node": "console.log(require('waggle-bee').says)",
    "shell": "waggle-bee; stat -c %U /usr/bin/waggle-bee",
}
SAYS = {"python": "hum /home/sandbox/venv\n", "node": "hum\n", "shell": "hum\nwaggle-bee\n"}


async def test_pip_npm_and_apt_get_install_what_a_rule_allows(installing):
    async with installing(LOOPBACK + ":{port}").client() as tools:
        for runtime, code in PROGRAMS.items():
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                installed = await tools.call("install_packages", environment_id=one, packages="waggle-bee==1.2.3" if runtime == "python" else "waggle-bee")
                assert installed["exit_code"] == 0, installed
                ran = await tools.call("execute", environment_id=one, code=code)
                assert ran["stdout"] == SAYS[runtime], ran


# Package managers of other distributions, with the changes to Debian's image `rpm` that make waggle use each. The image
# has no yum; on systems that have dnf, yum is an alias of dnf.
OTHERS = {
    "dnf": {},
    "yum": {"usr/bin/dnf": None, "usr/bin/yum": "#!/bin/sh\nexec dnf-3 \"$@\"\n"},
    "zypper": {"usr/bin/dnf": None},
}


@pytest.mark.parametrize("manager", OTHERS)
async def test_dnf_yum_and_zypper_install_what_a_rule_allows(installing, manager):
    server = installing(LOOPBACK + ":{port}", OTHERS[manager], SHELL="rpm")
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        installed = await tools.call("install_packages", environment_id=one, packages="waggle-bee")
        assert installed["exit_code"] == 0, installed
        ran = await tools.call("execute", environment_id=one, code="waggle-bee; stat -c %U /var/lib/waggle-bee")
        assert ran["stdout"] == "hum\ndaemon\n", ran
        # An unknown package is a plain failure, without a prompt.
        installed = await tools.call("install_packages", environment_id=one, packages="waggle-wasp")
        assert installed["exit_code"] != 0 and "waggle-wasp" in installed["stdout"] + installed["stderr"], installed


async def test_pip_npm_and_apt_get_report_a_missing_rule(installing):
    async with installing("public").client() as tools:
        for runtime in PROGRAMS:
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                installed = await tools.call("install_packages", environment_id=one, packages="waggle-bee")
                assert installed["exit_code"] != 0, installed
                assert "network policy" in installed["hint"], installed


async def test_the_operators_certificates_are_trusted(serve, tmp_path):
    with repositories.serve_tls(tmp_path) as (port, bundle):
        settings = {"EGRESS": f"{LOOPBACK}:{port}", "CA_BUNDLE": str(bundle)}
        url = f"https://{HOST}:{port}/hello"
        fetches = {
            "python": {"python": f"import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"},
            "node": {"node": f"fetch('{url}').then(answer => answer.text()).then(text => console.log(text))"},
            "shell": {
                "shell": f"curl --silent --show-error {url}",
                "git": f"git ls-remote https://{HOST}:{port}/bee.git | cut -f 2",
            },
        }
        async with serve(**settings).start().client() as tools:
            for runtime, programs in fetches.items():
                async with tools.environment(runtime) as made:
                    for name, code in programs.items():
                        ran = await tools.call("execute", environment_id=made["environment_id"], code=code)
                        assert ran["stdout"].strip() == ("HEAD\nrefs/heads/hum" if name == "git" else "hum"), (name, ran)
        # Without the bundle, the same request fails.
        async with serve(EGRESS=settings["EGRESS"], IMAGE_PYTHON=image("python")).start().client() as tools:
            async with tools.environment("python") as made:
                ran = await tools.call("execute", environment_id=made["environment_id"], code=fetches["python"]["python"])
                assert "CERTIFICATE_VERIFY_FAILED" in ran["stderr"], ran


PLOT = """
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot, numpy
x = numpy.linspace(0, 1)
matplotlib.pyplot.plot(x, x ** 2)
matplotlib.pyplot.savefig("plot.png")
print(round(float(numpy.trapezoid(x ** 2, x)), 3))
"""


# The timeout is long because an emulated processor unpacks and compiles the packages and builds a font cache.
@pytest.mark.index
@pytest.mark.timeout(1500)
async def test_a_plot_is_made_with_packages_of_a_local_index(serve, peers):
    index = Index()
    rules = index.rules("numpy", "matplotlib")
    settings = {"EGRESS": rules, "INSTALL_TIMEOUT": "15m", "CA_BUNDLE": index.certificates, "EGRESS_PROXY": index.proxy}
    server = serve(**{name: value for name, value in settings.items() if value}).start()
    async with server.client(timeout_s=1000) as tools, tools.environment("python") as made:
        one = made["environment_id"]
        await tools.call(
            "write_file", environment_id=one, path=".config/pip/pip.conf", content=f"[global]\nindex-url = {index.url}\n"
        )
        installed = await tools.call("install_packages", environment_id=one, packages="numpy matplotlib")
        assert installed["exit_code"] == 0, installed
        ran = await tools.call("execute", environment_id=one, code=PLOT, timeout_seconds=300)
        assert (ran["exit_code"], ran["stdout"]) == (0, "0.333\n"), ran
        [picture] = (await tools.raw("read_file", environment_id=one, path="plot.png")).content
        assert (picture.type, picture.mime_type) == ("image", "image/png")
        content = base64.b64decode(picture.data)
        # The PNG signature, and the width and height in the first chunk.
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (640, 480)

        # The same environment reaches nothing else.
        listener = peers("greet", "0.0.0.0")
        [outside] = peers.own_addresses("192.0.2.9")
        places = ["169.254.169.254", HOST, "10.0.0.1", "192.168.0.1", *([outside] if outside else [])]
        targets = [[place, port] for place in places for port in (80, listener.port)]
        assert await probe(tools, made, targets) == {f"{place} {port}": "refused" for place, port in targets}
        assert listener.heard() == []
