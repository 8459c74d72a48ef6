# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A waggle server, started as a user would start it, and checks that it leaves nothing behind."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import mcp
from jsonschema import Draft202012Validator
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("WAGGLE_BINARY", ROOT / "target/debug/waggle"))

# Maximum time of a start, which includes the KVM probe.
READY_S = 60
# The server promises to exit within 30 s of SIGTERM.
STOP_S = 35
# Maximum time in which a runner ends its machine after the server has ended.
ORPHAN_S = 15
# Runs a command in a separate mount namespace, in which KVM does not work.
WITHOUT_KVM = ["unshare", "--mount", "sh", "-c", '[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; exec "$@"', "sh"]
# Runs a command in a separate mount namespace, with the files of a folder, the first argument, mounted over those in /etc.
WITH_SETTINGS = 'for file in "$0"/*; do mount --bind "$file" "/etc/${file##*/}" || exit 1; done; exec "$@"'
# The timeout of a call, for software emulation on a busy machine.
CALL_S = 180


def image(name):
    return f"oci:{ROOT / 'target/images' / name}"


# Most tests have a server of their own with a single machine, which would never use the template that it causes. With this
# variable, all machines start from templates if they can.
ALL_FROM_TEMPLATES = os.environ.get("E2E_TEMPLATES") == "1"
FROM_TEMPLATES = {"TEMPLATES_AT_START": "true", "WARM_TEMPLATES": "false"}
ON_DEMAND = {"TEMPLATES": "6", "TEMPLATES_AT_START": "false"}
TEMPLATE_READY = "a template is ready"
# Settings of servers that make all templates.
USUAL = {"LISTEN_ADDR", "DATA_DIR", "IMAGE_CACHE_DIR", "FIRMWARE", "BACKEND", "IMAGE_PYTHON", "IMAGE_NODE", "IMAGE_SHELL"}
USUAL |= {"DISK_RESERVE_MB", *FROM_TEMPLATES}
# Time to wait for the templates of the three runtimes; not all servers make them.
TEMPLATES_S = 20

# The beginning of the names of the folders of templates.
TEMPLATE = "/template-"


def is_socket(path):
    # A template's folder may disappear meanwhile.
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


class Server:
    """A server with its own data folder; settings are WAGGLE_* variables without the prefix."""

    # The token of its clients, if any.
    token = None
    # The scheme of its URLs. With https, SSL_CERT_FILE must name the certificate of the authority.
    scheme = "http"
    # The nested host in which the server runs, if any.
    host = None
    # The number of consecutive connections that a test has time for.
    connections = 2000

    def __init__(self, **settings):
        # Short, because a Unix socket's path is limited to 107 bytes.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="wg-"))
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = free_port()
        self.settings = {
            "LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "DATA_DIR": str(self.data),
            "IMAGE_CACHE_DIR": str(ROOT / "target/e2e-image-cache"),
            "FIRMWARE": str(ROOT / "target/firmware"),
            "BACKEND": "qemu",
            "IMAGE_PYTHON": image("python"),
            "IMAGE_NODE": image("node"),
            "IMAGE_SHELL": image("shell"),
            # Less than the default, for machines with a small disk.
            "DISK_RESERVE_MB": "16",
            **(FROM_TEMPLATES if ALL_FROM_TEMPLATES else {"TEMPLATES": "0"}),
            **settings,
        }
        self.process = None
        self.binary = BINARY
        # A command to which the server's own command is appended.
        self.through = []

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/mcp"

    @property
    def own_port(self):
        """The port on the server's machine; clients connect to `port`, which may be forwarded to it."""
        return int(self.settings["LISTEN_ADDR"].rpartition(":")[2])

    def variables(self):
        """The environment variables of a command with this server's settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
        return inherited | {f"WAGGLE_{name}": value for name, value in self.settings.items()}

    def set_hosts(self, **addresses):
        """Adds these names to the hosts file of the server's machine. The first call takes effect at the next start."""
        self.set_file("hosts", hosts_file(addresses))

    def set_name_server(self, address):
        """Makes this the only name server of the server's machine, from the next start."""
        self.set_file("resolv.conf", f"nameserver {address}\n")

    def set_file(self, name, text):
        """Replaces a file in /etc, for the server only."""
        settings = self.folder / "etc"
        settings.mkdir(exist_ok=True)
        (settings / name).write_text(text)
        self.through = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", WITH_SETTINGS, settings]

    def launch(self):
        """Starts the process without waiting for it to be ready."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.through, self.binary, "serve"], env=self.variables(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def start(self, page="/readyz"):
        """Starts the process and waits until a page answers 200."""
        self.launch()
        deadline = time.monotonic() + READY_S
        while self.status(page)[0] != 200:
            assert self.process.poll() is None, f"the server ended at its start:\n{self.output()}"
            assert time.monotonic() < deadline, f"the server was not ready after {READY_S} s:\n{self.output()}"
            time.sleep(0.05)
        if ALL_FROM_TEMPLATES and self.settings.get("TEMPLATES_AT_START") == "true":
            deadline = time.monotonic() + TEMPLATES_S
            while self.output().count(TEMPLATE_READY) < 3 and time.monotonic() < deadline:
                time.sleep(0.1)
            # Servers with other images or limits have fewer.
            assert set(self.settings) - USUAL or self.output().count(TEMPLATE_READY) == 3, self.output()
        return self

    def status(self, path):
        """The HTTP status and body of a page; the status is 0 while nothing answers."""
        try:
            with urllib.request.urlopen(f"{self.scheme}://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (urllib.error.URLError, OSError):
            return 0, None

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self):
        """Kills the server, so that it cannot clean up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self):
        if self.process is None:
            return
        # The status of a server that ended by itself is checked as well.
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server was still running {STOP_S} s after SIGTERM:\n{self.output()}") from None
        assert status == 0, f"the server ended with {status}:\n{self.output()}"

    def remove(self):
        """Kills processes that should have ended, and removes the files that are left."""
        for pid, _ in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def processes(self):
        """The server and the processes of its machines; while it runs, without those that become templates.

        All of them have the server's folder in their arguments, environment or working directory.
        """
        mark = str(self.folder).encode()
        hidden = [TEMPLATE.encode()] if self.is_running else []
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                folder = os.readlink(entry / "cwd").encode()
                texts = [line, (entry / "environ").read_bytes(), folder]
                if any(name in folder for name in hidden):
                    continue
                if any(mark in text for text in texts) and line and int(entry.name) != os.getpid():
                    found.append((int(entry.name), line.decode(errors="replace")))
        return found

    def shell(self, script):
        """The output of a script that runs where the server runs, as root if the tests run as root."""
        return run_script(script)

    def machines(self):
        """The ids of the VMM processes."""
        return [pid for pid, line in self.processes() if "qemu-system" in line.split(" ")[0]]

    def runners(self):
        """The ids of the runners."""
        return [pid for pid, line in self.processes() if "runner machine" in line]

    def signal(self, pids, number):
        for pid in pids:
            os.kill(pid, number)

    def resident_kib(self):
        """The resident memory of the server's process, in KiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def open_files(self):
        """The number of open files of the server's process."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def machine_files(self):
        """The sockets in the server's folder, and the files in the folders of machines, except hidden ones.

        While the server runs, without those of templates.
        """
        run = self.data / "machines"
        found = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
        for place in (self.data, self.folder):
            found += [path for path in place.rglob("*") if is_socket(path)]
        return self.without_templates(sorted({str(path) for path in found}))

    def without_templates(self, paths):
        return [path for path in paths if not self.is_running or TEMPLATE not in path]

    def bound_sockets(self):
        """The lines of /proc/net/unix with a path in the server's folder."""
        lines = pathlib.Path("/proc/net/unix").read_text().splitlines()
        return self.without_templates([line for line in lines if str(self.folder) in line])

    def machine_folders(self):
        """The folders of machines, including empty ones."""
        folders = sorted(str(path) for path in (self.data / "machines").glob("*/*") if path.is_dir())
        return self.without_templates(folders)

    def leftovers(self, but=()):
        """Everything that is left of machines, except for the processes in `but`."""
        processes = [f"{pid} {line}" for pid, line in self.processes() if pid not in but]
        return processes + self.machine_folders() + self.machine_files() + self.bound_sockets()

    def assert_nothing_left(self, within_s=0.0):
        """Asserts that nothing is left of any machine, and that no process runs except the server itself."""
        alive = [self.process.pid] if self.is_running else []
        deadline = time.monotonic() + within_s
        while (left := self.leftovers(alive)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == [], "left behind:\n" + "\n".join(left)

    @contextlib.asynccontextmanager
    async def client(self, token=None, timeout_s=CALL_S, **options):
        token = token or self.token
        headers = {"Authorization": f"Bearer {token}"} if token else None
        async with create_mcp_http_client(headers) as http:
            transport = streamable_http_client(self.url, http_client=http)
            async with mcp.Client(transport, read_timeout_seconds=timeout_s, **options) as client:
                yield await Tools.of(client)

    @contextlib.asynccontextmanager
    async def conversation(self, **options):
        """A client that starts the server itself and talks to it over standard input and output."""
        settings = {f"WAGGLE_{name}": value for name, value in self.settings.items()}
        command, *arguments = map(str, [*self.through, BINARY, "serve", "--stdio"])
        command = mcp.StdioServerParameters(command=command, args=arguments, env=os.environ | settings)
        with open(self.log, "a") as log:
            transport = mcp.stdio_client(command, errlog=log)
            async with mcp.Client(transport, read_timeout_seconds=CALL_S, **options) as client:
                yield await Tools.of(client)


class Tools:
    """Calls the tools. Each method asserts that results match the tools' schemas."""

    def __init__(self, client, schemas):
        self.client = client
        self.schemas = schemas

    @classmethod
    async def of(cls, client):
        listed = (await client.list_tools()).tools
        return cls(client, {tool.name: Draft202012Validator(tool.output_schema) for tool in listed if tool.output_schema})

    async def raw(self, tool, **arguments):
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            error = result.meta["waggle/error"]
            assert result.content[0].text.startswith(error["message"]) and error["code"] and error["hint"], error
        elif tool in self.schemas:
            self.schemas[tool].validate(result.structured_content)
        return result

    async def text(self, tool, **arguments):
        result = await self.raw(tool, **arguments)
        assert not result.is_error, f"{tool}({arguments}): {result.content[0].text}"
        return result.content[0].text

    async def call(self, tool, **arguments):
        return json.loads(await self.text(tool, **arguments))

    async def refusal(self, tool, **arguments):
        """The message of a call that must fail."""
        result = await self.raw(tool, **arguments)
        assert result.is_error, f"{tool}({arguments}) was not refused: {result.content[0].text}"
        return result.content[0].text

    async def fault(self, tool, **arguments):
        """The error code of a call that must fail, from a tool result or a protocol error."""
        try:
            result = await self.raw(tool, **arguments)
        except mcp.MCPError as error:
            return error.data["code"]
        assert result.is_error, f"{tool}({arguments}) did not fail: {result.content[0].text}"
        return result.meta["waggle/error"]["code"]

    async def create(self, language, **arguments):
        """The new environment, with the origin of its agent."""
        result = await self.raw("create_environment", language=language, **arguments)
        assert not result.is_error, result.content[0].text
        return json.loads(result.content[0].text) | {"agent_origin": result.meta["waggle/agent_origin"]}

    @contextlib.asynccontextmanager
    async def environment(self, language, **arguments):
        made = await self.create(language, **arguments)
        try:
            yield made
        finally:
            await self.raw("destroy_environment", environment_id=made["environment_id"])


def kvm_fault():
    """The doctor's reason why this machine's KVM runs no guest, or None if it runs one."""
    server = Server()
    try:
        command = [BINARY, "doctor", "--json", "--no-boot"]
        ran = subprocess.run(command, env=server.variables(), capture_output=True, timeout=CALL_S, check=False)
    finally:
        server.remove()
    (check,) = [check for check in json.loads(ran.stdout)["checks"] if check["name"] == "KVM guests"]
    return None if check["state"] == "ok" else check["found"]


def hosts_file(addresses):
    """A hosts file that gives each NAME.test its addresses, which are separated by spaces."""
    return "".join(f"{address} {name}.test\n" for name, listed in addresses.items() for address in listed.split())


def run_script(script):
    """The output of a script that runs on this machine."""
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=CALL_S, check=False).stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
