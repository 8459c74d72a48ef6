# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A small Debian with systemd and our package, on a processor with emulated SVM, like an operator's host."""

import subprocess

import nested
from nested import SERVER_PORTS, SHELL_PORT, NestedHost
from server import ROOT

PACKAGES = ROOT / "target/packages"

# Maximum time of the boot with systemd, with emulation, on a busy machine.
BOOT_S = 180
# The token of the test's client.
TOKEN = "what-the-client-of-the-unit-shows"
IMAGES = "/var/lib/images"
PORT = SERVER_PORTS[0]

# An operator's settings for a server that is reachable from outside, with a local image.
DEFAULTS = f"""\
WAGGLE_LISTEN_ADDR=0.0.0.0:{PORT}
WAGGLE_AUTH_TOKENS_FILE=/etc/waggle/tokens
WAGGLE_BACKEND=krun
WAGGLE_IMAGE_PYTHON=oci:{IMAGES}/foreign
WAGGLE_IMAGE_NODE=oci:{IMAGES}/foreign
WAGGLE_IMAGE_SHELL=oci:{IMAGES}/foreign
"""

# With this setting, a forbidden system call kills the process, so the test notices the call. In the package's unit,
# the call fails with EPERM.
DROP_IN = """\
[Service]
SystemCallErrorNumber=kill
"""

# The unit of the tests' shell. It also prints on the console that the system is up.
SHELL_UNIT = f"""\
[Unit]
After=basic.target
[Service]
ExecStartPre=/bin/sh -c 'ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0; echo nested host is up >/dev/hvc0'
ExecStart=/bin/busybox nc -ll -p {SHELL_PORT} -e /bin/sh
[Install]
WantedBy=multi-user.target
"""

# Packages that a minimal Debian lacks. systemd, waggle's package and the tests need them.
INCLUDE = ["systemd-sysv", "udev", "iproute2", "e2fsprogs", "passwd", "libgcc-s1", "kmod"]


class SystemdHost(NestedHost):
    """The guest, booted with systemd; waggle's unit is installed but not started."""

    init = nested.INIT.replace("exec switch_root /host /bin/sh /start", "exec switch_root /host /sbin/init")
    boot_s = BOOT_S

    def __init__(self, package):
        self.package = package
        super().__init__(None, [], None)

    def _make_disk(self, *_):
        tree = self.folder / "root"
        setup = [
            "dpkg --install /tmp/waggle.deb",
            "install -d -m 755 /etc/waggle",
            f"echo tests {TOKEN} >/etc/waggle/tokens && chown waggle:waggle /etc/waggle/tokens && chmod 600 /etc/waggle/tokens",
            "systemctl enable tests.service",
            # The emulated machine does not need these units, and they take time.
            "systemctl mask systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service",
        ]
        files = {
            "etc/default/waggle": DEFAULTS,
            "etc/systemd/system/tests.service": SHELL_UNIT,
            "etc/systemd/system/waggle.service.d/tests.conf": DROP_IN,
        }
        hooks = [f'--customize-hook=install -d "$1/{name.rpartition("/")[0]}"' for name in files]
        hooks += [f"--customize-hook=upload {self._file(name, content)} /{name}" for name, content in files.items()]
        hooks += [f"--customize-hook=upload {self.busybox} /bin/busybox", '--customize-hook=chmod 755 "$1/bin/busybox"']
        hooks += [f"--customize-hook=upload {self.package} /tmp/waggle.deb"]
        hooks += [f"--customize-hook=copy-in {ROOT}/target/images/foreign {IMAGES}"]
        hooks += [f"--customize-hook=chroot \"$1\" sh -ec '{command}'" for command in setup]
        made = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={','.join(INCLUDE)}"]
            + [f"--customize-hook=mkdir -p \"$1{IMAGES}\"", *hooks, "bookworm", tree],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        self._write_disk(tree)

    def _file(self, name, content):
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path
