# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A server with libkrun in a nested host, with the interface of a server that runs on this machine."""

import pathlib
import signal
import subprocess
import time

from krun_server import KrunProcesses
from nested import LOOPBACK_PORT, OPEN_PORT, SERVER_PORTS, USER_ID
from server import ROOT, STOP_S, Server, hosts_file

# The nested host's loopback is unreachable from outside, and a server on another address requires tokens.
TOKEN = "what-every-client-of-nested-hosts-shows"

# The interval of polls. One query through the nested host's shell takes about as long.
LOOK_S = 0.2

# Prints the id, working directory and command line of each process of the server's user, separated by spaces.
PROCESSES = f"""
for place in $(stat -c '%u %n' /proc/[0-9]* 2>/dev/null | sed -n 's/^{USER_ID} //p'); do
  line=$(tr '\\0' ' ' <$place/cmdline 2>/dev/null)
  [ -n "$line" ] && echo "${{place#/proc/}} $(readlink $place/cwd) $line"
done
"""


class NestedProcess:
    """A process in the nested host, with methods of `subprocess.Popen`."""

    def __init__(self, host, folder):
        self.host = host
        self.folder = folder
        self.pid = int(host.shell(f"while ! [ -s {folder}/pid ]; do sleep 0.1; done; cat {folder}/pid"))

    def poll(self):
        status = self.host.shell(f"cat {self.folder}/status 2>/dev/null").strip()
        return int(status) if status else None

    def wait(self, timeout=STOP_S):
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("waggle", timeout)
            time.sleep(LOOK_S)
        return status

    def send_signal(self, number):
        self.host.shell(f"kill -{int(number)} {self.pid}")

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class NestedServer(KrunProcesses, Server):
    """The server runs in the nested host, as a user who owns only /dev/kvm and the server's folders."""

    token = TOKEN
    # In a guest of an emulated host, a connection takes 80 ms.
    connections = 300

    def __init__(self, host, **settings):
        super().__init__(**{"BACKEND": "krun", "FIRMWARE": "/waggle"} | settings)
        self.host = host
        # The folder is in the nested host instead.
        self.folder.rmdir()
        self.inside = host.free_ports.pop(0)
        self.port = host.ports[self.inside]
        self.folder = pathlib.PurePosixPath(f"/data/{self.inside}")
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.process = None
        self.settings |= {
            "LISTEN_ADDR": f"0.0.0.0:{self.inside}",
            "AUTH_TOKENS_FILE": str(self.folder / "tokens"),
            "DATA_DIR": str(self.data),
            "IMAGE_CACHE_DIR": "/cache",
        }
        self.settings = {name: inside(value) for name, value in self.settings.items()}
        host.shell(
            f"mkdir -p {self.folder} && echo tests {TOKEN} >{self.folder}/tokens && chmod 600 {self.folder}/tokens &&"
            f" chown -R {USER_ID} {self.folder}"
        )

    def open(self):
        """Makes the server listen on its host's loopback, without tokens. Only one server can do so at a time."""
        del self.settings["AUTH_TOKENS_FILE"]
        self.settings["LISTEN_ADDR"] = f"127.0.0.1:{LOOPBACK_PORT}"
        self.port, self.token = self.host.ports[OPEN_PORT], None

    def set_hosts(self, **addresses):
        self.host.shell("cat >/etc/hosts <<'end of hosts'\n" + hosts_file(addresses) + "end of hosts")

    def set_name_server(self, address):
        self.host.shell(f"echo nameserver {address} >/etc/resolv.conf")

    def launch(self):
        settings = " ".join(f"WAGGLE_{name}='{value}'" for name, value in self.settings.items())
        script = f"""cd {self.folder}
env -i PATH=/bin:/sbin:/usr/bin HOME=/data {settings} /waggle/waggle serve >>log 2>&1 </dev/null &
echo $! >pid
wait $!
echo $? >status
"""
        # Files of an earlier start would be mistaken for those of this start.
        self.host.shell(f"cd {self.folder} && rm -f pid status")
        self.host.shell(
            f"cat >{self.folder}/run <<'end of script'\n{script}end of script\n"
            f"su -s /bin/sh waggle -c 'setsid sh {self.folder}/run' </dev/null >/dev/null 2>&1 &"
        )
        self.process = NestedProcess(self.host, self.folder)
        return self

    def output(self):
        return self.host.shell(f"cat {self.log}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def remove(self):
        for pid, _ in self.processes():
            self.host.shell(f"kill -9 {pid}")
        self.host.shell(f"rm -rf {self.folder} /etc/resolv.conf")
        self.host.free_ports.append(self.inside)

    def processes(self):
        """The processes that run in this server's folder, except the shell that waits for the server."""
        found = []
        for entry in self.host.shell(PROCESSES).splitlines():
            pid, rest = entry.split(" ", 1)
            folder, line = rest.split(" ", 1)
            if f"{folder}/".startswith(f"{self.folder}/") and f"{self.folder}/run" not in line:
                found.append((int(pid), line.strip()))
        return found

    def shell(self, script):
        return self.host.shell(script)

    def signal(self, pids, number):
        self.host.shell(f"kill -{int(number)} {' '.join(map(str, pids))}")

    def resident_kib(self):
        return int(self.host.shell(f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{self.process.pid}/status"))

    def open_files(self):
        return int(self.host.shell(f"ls /proc/{self.process.pid}/fd | wc -l"))

    def machine_folders(self):
        return self.host.shell(f"find {self.data}/machines -mindepth 2 -maxdepth 2 -type d 2>/dev/null").splitlines()

    def machine_files(self):
        script = f"find {self.data}/machines -type f ! -name '.*' 2>/dev/null; find {self.folder} -type s"
        return sorted(set(self.host.shell(script).splitlines()))

    def bound_sockets(self):
        return [line for line in self.host.shell("cat /proc/net/unix").splitlines() if str(self.folder) in line]


def inside(value):
    return value.replace(f"oci:{ROOT / 'target/images'}", "oci:/images")
