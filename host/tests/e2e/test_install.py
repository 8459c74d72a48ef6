# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Package managers in guests install what rules allow, report missing rules, and trust the operator's certificates."""

import asyncio
import base64
import contextlib
import struct
import tarfile

import pytest

import repositories
from layouts import Layer
from package_index import Index
from repositories import ASKED, HOST, NAMES, SILENT
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

        def make(rules, changed=None, change=None, **images):
            images = images or {"PYTHON": "python", "NODE": "node", "SHELL": "shell"}
            layouts = {f"IMAGE_{runtime}": repositories.image(name, tmp_path, port, changed) for runtime, name in images.items()}
            if change:
                for name in images.values():
                    change(tmp_path / name)
            cache = str(tmp_path / "cache")
            return serve(IMAGE_CACHE_DIR=cache, EGRESS=rules.format(port=port), **layouts).start()

        yield make


async def install(tools, one, packages, **arguments):
    """Installs packages, which must succeed."""
    installed = await tools.call("install_packages", environment_id=one, packages=packages, **arguments)
    assert installed["exit_code"] == 0, installed
    return installed


async def shell(tools, one, code):
    ran = await tools.call("execute", environment_id=one, language="shell", code=code)
    return ran["stdout"] + ran["stderr"]


PROGRAMS = {
    "python": "import waggle_bee, waggle_ant, waggle_fly, sys; print(waggle_bee.SAYS, sys.prefix)",
    "node": "for (const name of ['bee', 'ant', 'fly']) require(`waggle-${name}`); console.log(require('waggle-bee').says)",
    "shell": "waggle-ant >/dev/null && waggle-fly >/dev/null; waggle-bee; stat -c %U /usr/bin/waggle-bee",
}
SAYS = {"python": "hum /home/sandbox/venv\n", "node": "hum\n", "shell": "hum\nwaggle-bee\n"}
VERSIONS = {"python": "waggle-bee == 1.2.3", "node": ["waggle-bee@>=1 <2"], "shell": "waggle-bee"}


async def test_pip_npm_and_apt_get_install_what_a_rule_allows(installing):
    """Several installations at the same time lose nothing, and environments of another runtime take system packages."""
    async with installing(LOOPBACK + ":{port}").client() as tools:
        for runtime, code in PROGRAMS.items():
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                await asyncio.gather(*(install(tools, one, name) for name in [VERSIONS[runtime], *NAMES[1:]]))
                ran = await tools.call("execute", environment_id=one, code=code)
                assert ran["stdout"] == SAYS[runtime], ran
                if runtime == "python":
                    await install(tools, one, '["waggle-bee"]', system=True)
                    assert await shell(tools, one, "waggle-bee; stat -c %U /usr/bin/waggle-bee") == "hum\nwaggle-bee\n"


async def cancel(call):
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def until(tools, one, condition):
    """Waits until a condition of the shell holds."""
    async with asyncio.timeout(120):
        while await shell(tools, one, condition + " && echo holds") != "holds\n":
            await asyncio.sleep(0.1)


# Prints the packages that are neither installed nor absent.
STATES = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | grep -v '^installed\\|^config-files\\|^not-inst'; "


async def test_an_installation_by_apt_get_that_was_stopped_does_not_stop_later_ones(installing):
    async with installing(LOOPBACK + ":{port}", SHELL="shell").client() as tools:
        async with tools.environment("shell") as made:
            one = made["environment_id"]
            killed = await tools.call("install_packages", environment_id=one, packages="waggle-ant waggle-killer")
            assert killed["signal"] == 9, killed
            assert await shell(tools, one, "ls /var/lib/dpkg/updates") != ""
            # A cancelled repair finishes as well, but the installation does not begin.
            await shell(tools, one, "touch /tmp/wait")
            call = asyncio.create_task(tools.raw("install_packages", environment_id=one, packages="waggle-fly"))
            await until(tools, one, "[ -e /tmp/unpacks ]")
            await cancel(call)
            following = asyncio.create_task(install(tools, one, "waggle-bee waggle++"))
            await shell(tools, one, "sleep 1; touch /tmp/go-on")
            await following
            works = "waggle-killer; waggle-ant; waggle-bee; waggle++; command -v waggle-fly"
            assert await shell(tools, one, STATES + works) == "hum\n" * 4
            # A name is neither a regular expression nor a removal.
            installed = await tools.call("install_packages", environment_id=one, packages="waggle.fly")
            assert installed["exit_code"] == 100 and "Unable to locate" in installed["stderr"], installed
            refused = await tools.raw("install_packages", environment_id=one, packages="waggle-bee-")
            assert "invalid package name" in refused.content[0].text, refused
        async with tools.environment("shell") as made:
            one = made["environment_id"]
            # A cancelled installation finishes, and the next one waits for it.
            call = tools.raw("install_packages", environment_id=one, packages="waggle-slow")
            call = asyncio.create_task(call)
            await until(tools, one, "[ -e /tmp/unpacks ]")
            await cancel(call)
            following = asyncio.create_task(install(tools, one, "waggle-bee"))
            await shell(tools, one, "sleep 1; touch /tmp/go-on")
            await following
            assert await shell(tools, one, STATES + "waggle-slow; waggle-bee") == "hum\n" * 2


# The state in which a killed installation leaves packages: pip has written no record yet, and npm has moved one package
# away and unpacked a part of another.
HALF_DONE = {
    "python": "cd venv/lib/python3*/site-packages && rm waggle_ant.py waggle_ant-*/RECORD",
    "node": "cd node_modules && mkdir -p .waggle-ant-Ab3dEf_h/lib waggle-fly && cp waggle-ant/package.json waggle-fly && "
    "sed -i s/-ant/-fly/ waggle-fly/package.json",
}
USES = {"python": "import waggle_ant, waggle_fly", "node": "require('waggle-ant'), require('waggle-fly')"}
# What looks the same, but did not change while the installation ran.
OWN = {
    "python": ("venv/lib/python3*/site-packages", "mkdir own-1.dist-info && echo Name: own >own-1.dist-info/METADATA"),
    "node": ("node_modules", "mkdir .own-Ab3dEf_h"),
}


@pytest.mark.long
async def test_an_installation_by_pip_or_npm_that_was_cancelled_does_not_stop_later_ones(installing, tmp_path):
    asked = tmp_path / "repository" / ASKED
    async with installing(LOOPBACK + ":{port}", PYTHON="python", NODE="node").client() as tools:
        for runtime, code in HALF_DONE.items():
            async with tools.environment(runtime) as made:
                one = made["environment_id"]
                await install(tools, one, "waggle-ant")
                call = tools.raw("install_packages", environment_id=one, packages=f"waggle-{SILENT}")
                call = asyncio.create_task(call)
                while not asked.exists():
                    await asyncio.sleep(0.1)
                said = await shell(tools, one, code)
                assert said == "", said
                await cancel(call)
                asked.unlink()
                folder, make = OWN[runtime]
                said = await shell(tools, one, f"sleep 4; cd {folder} && {make}")
                assert said == "", said
                if runtime == "python":
                    # An installation of another kind of packages leaves the repair to do.
                    await install(tools, one, "waggle-bee", system=True)
                await install(tools, one, "waggle-ant waggle-fly")
                ran = await tools.call("execute", environment_id=one, code=USES[runtime])
                assert ran["exit_code"] == 0, ran
                assert "own" in await shell(tools, one, f"ls -A {folder}")


async def test_pip_replaces_a_half_made_virtual_environment_and_nothing_else(installing):
    async with installing(LOOPBACK + ":{port}", PYTHON="python").client() as tools:
        async with tools.environment("python") as made:
            one = made["environment_id"]
            # A folder that is not an environment stays, whatever is in it.
            await shell(tools, one, "rm -rf venv && mkdir venv && touch venv/mine")
            await install(tools, one, "waggle-ant")
            assert await shell(tools, one, "ls -A venv | grep 'mine\\|making'") == "mine\n"
            # The state in which a killed installation leaves an environment that it was making.
            await shell(tools, one, "rm -r venv/lib && touch venv/.waggle-making")
            await install(tools, one, "waggle-bee")
            assert await shell(tools, one, "ls -A venv | grep 'mine\\|making'") == ""
            ran = await tools.call("execute", environment_id=one, code="import waggle_bee")
            assert ran["exit_code"] == 0, ran


def with_venv(uid):
    """A function that adds a virtual environment without pip, owned by that user, to an image of Python."""

    def change(layout):
        layer, place = Layer(), "opt/venv"
        for folder in ["", "/bin", "/lib", "/lib/python3.11", "/lib/python3.11/site-packages"]:
            layer.add(place + folder, tarfile.DIRTYPE, uid=uid, gid=uid)
        for name in ["python", "python3"]:
            layer.add(f"{place}/bin/{name}", tarfile.SYMTYPE, target="/usr/bin/python3", uid=uid, gid=uid)
        settings = b"home = /usr/bin\ninclude-system-site-packages = false\n"
        layer.add(f"{place}/pyvenv.cfg", content=settings, uid=uid, gid=uid)
        layer.add(f"{place}/lib/python3.11/site-packages/hive.py", content=b"SAYS = 'hive'\n", uid=uid, gid=uid)
        # The image's own environment in the home would come first.
        layer.add("home/sandbox/.wh.venv", uid=1000, gid=1000)
        repositories.add_layer(layout, layer.end())
        repositories.reconfigure(layout, Env=["PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"])

    return change


VENVS = [
    pytest.param(0, "/home/sandbox/venv", "waggle-bee", "already satisfied", marks=pytest.mark.long),
    (1000, "/opt/venv", "waggle-ant", "Successfully installed waggle-ant"),
]


@pytest.mark.parametrize("uid, prefix, more, expected", VENVS)
async def test_the_virtual_environment_of_an_image_stays_importable(installing, uid, prefix, more, expected):
    """pip installs into it if the user can write to it, and beside it otherwise; `pip` in a shell does the same."""
    uses = "import sys, hive, waggle_bee; print(sys.prefix, hive.SAYS, waggle_bee.SAYS)"
    async with installing(LOOPBACK + ":{port}", change=with_venv(uid), PYTHON="python").client() as tools:
        async with tools.environment("python") as made:
            one = made["environment_id"]
            await install(tools, one, "waggle-bee")
            ran = await tools.call("execute", environment_id=one, code=uses)
            assert ran["stdout"] == f"{prefix} hive hum\n", ran
            # `pip` in a shell installs into the same environment.
            said = await shell(tools, one, f"pip install {more}")
            assert expected in said and "rror" not in said, said
            if uid != 0:
                # Root runs no program of a folder that the user can write to, although the image's path begins with it.
                plant = "printf '#!/bin/sh\\ntouch /tmp/planted\\n' >$name && chmod +x $name"
                await shell(tools, one, f"cd {prefix}/bin && for name in sh apt-get dpkg; do {plant}; done")
                await install(tools, one, "waggle-fly", system=True)
                assert await shell(tools, one, "waggle-fly; [ ! -e /tmp/planted ] && echo none") == "hum\nnone\n"


# Package managers of other distributions, with the changes to Debian's image `rpm` that make waggle use each. The image
# has no yum; on systems that have dnf, yum is an alias of dnf.
OTHERS = {
    "dnf": {},
    "yum": {"usr/bin/dnf": None, "usr/bin/yum": "#!/bin/sh\nexec dnf-3 \"$@\"\n"},
    "zypper": {"usr/bin/dnf": None},
}


@pytest.mark.parametrize("manager", ["dnf", "zypper", pytest.param("yum", marks=pytest.mark.long)])
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


# A dnf that is killed in its first transaction, with data bases that it was writing.
KILLED_DNF = """#!/bin/sh
[ -e /tmp/go-on ] && exec dnf-3 "$@"
database=$(rpm --eval '%{_dbpath}')/rpmdb.sqlite
dnf-3 "$@" &
until [ -e "$database" ]; do sleep 0.1; done
kill -9 $!
head -c 4096 /dev/zero >"$database"
echo half >/var/lib/dnf/history.sqlite
kill -9 $$
"""


@pytest.mark.long
async def test_an_installation_by_dnf_that_was_killed_does_not_stop_later_ones(installing):
    server = installing(LOOPBACK + ":{port}", {"usr/bin/dnf": KILLED_DNF}, SHELL="rpm")
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        killed = await tools.call("install_packages", environment_id=one, packages="waggle-bee")
        assert killed["signal"] == 9, killed
        await shell(tools, one, "touch /tmp/go-on")
        await install(tools, one, "waggle-bee")
        assert await shell(tools, one, "waggle-bee") == "hum\n"


@pytest.mark.long
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
@pytest.mark.long
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
