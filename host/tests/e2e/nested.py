# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A host with working KVM, for machines that have none: a QEMU guest whose emulated processor has AMD's SVM.

An unprivileged server with libkrun runs in it, and clients reach it through forwarded ports. The tests inspect the
server's processes and files through a root shell on another port.
"""

import contextlib
import ctypes
import json
import mmap
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("WAGGLE_BINARY", ROOT / "target/debug/waggle"))
LIBRARY = next((ROOT / "target/firmware").glob("libkrunfw.so.5.*"), None)

# With emulation, the guest's kernel and init take 6 s on an idle machine.
BOOT_S = 60
# The time for which the clock is measured.
CLOCK_S = 0.2
# The timeout of a command in the tests' shell.
SHELL_S = 60
# The last line of the shell's answer to a command.
SHELL_END = "-- end --"
# Free space on the disk, for machines and prepared images.
DISK_FREE_MIB = 3072
MEMORY_MIB = 3072

# System programs that a user's search path may lack.
TOOLS = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}

# Ports in the guest: the tests' shell, and the servers.
SHELL_PORT = 9000
SERVER_PORTS = range(8080, 8084)
# Connections to OPEN_PORT are forwarded to LOOPBACK_PORT on the guest's loopback, which is unreachable from outside.
OPEN_PORT, LOOPBACK_PORT = 8090, 8091

# The id of the server's user.
USER_ID = 1000

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t ext4 /dev/vda /host
for place in dev proc sys; do mount --move /$place /host/$place; done
mount -t tmpfs tmp /host/tmp
mkdir -p /host/dev/shm /host/dev/pts
mount -t devpts pts /host/dev/pts
mount -t cgroup2 cgroup /host/sys/fs/cgroup
exec switch_root /host /bin/sh /start
"""

START = f"""#!/bin/sh
PATH=/bin:/sbin
export PATH
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
# The route leads nowhere: connections that use it are refused at once.
ip route add default via 10.0.2.2
ip address add fd00:2::15/64 dev eth0 nodad
ip -6 route add default via fd00:2::2
chown -R {USER_ID} /dev/kvm /data /cache
chmod 600 /dev/kvm
# The first run reads the program from the disk, which takes longer than a probe of KVM may.
/waggle/waggle runner probe >/dev/null
nc -ll -p {OPEN_PORT} -e /relay &
echo nested host is up
nc -ll -p {SHELL_PORT} -e /bin/sh
poweroff -f
"""


class NestedHost:
    """A booted guest with `images`, and with those of their merged files that the cache `prepared` has. `stop` ends it.

    `programs` are QEMU and its helpers on this machine; with them, QEMU's files are added.
    `with_python` adds this machine's Python, for servers that guests connect to and for `inject.py`.
    """

    init = INIT
    boot_s = BOOT_S
    # The interpreter itself, not its link in a virtual environment.
    python = pathlib.Path(sys.base_prefix, "bin", os.path.basename(os.path.realpath(sys.executable)))

    def __init__(self, binary, images, prepared, programs=(), with_python=False):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="wg-nested-"))
        self.console = self.folder / "console"
        self.ports = {inside: free_port() for inside in (SHELL_PORT, *SERVER_PORTS, OPEN_PORT)}
        self.free_ports = list(SERVER_PORTS)
        self.busybox = self.folder / "busybox"
        self.process = None
        try:
            write_program(self.busybox, file_of_image("foreign", "bin/busybox"))
            self._make_initramfs()
            self._make_disk(binary, images, prepared, programs, with_python)
            self._boot()
        except BaseException:
            self.stop()
            raise

    def _make_initramfs(self):
        tree = self.folder / "initramfs"
        for place in ("bin", "dev", "proc", "sys", "host"):
            (tree / place).mkdir(parents=True)
        shutil.copy(self.busybox, tree / "bin/busybox")
        write_program(tree / "init", self.init)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        archive = self.folder / "initramfs.cpio"
        with open(archive, "wb") as out:
            subprocess.run(
                ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=tree, input=names.encode(), stdout=out, check=True
            )

    def _make_disk(self, binary, images, prepared, programs, with_python):
        tree = self.folder / "root"
        for place in ("bin", "sbin", "dev", "proc", "sys", "tmp", "data", "cache", "etc", "images", "waggle"):
            (tree / place).mkdir(parents=True)
        shutil.copy(self.busybox, tree / "bin/busybox")
        applets = subprocess.run([self.busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if not (tree / "bin" / applet).exists():
                (tree / "bin" / applet).symlink_to("busybox")
        subprocess.run(["strip", "-o", tree / "waggle/waggle", binary], check=True)
        shutil.copy(LIBRARY, tree / "waggle")
        formatter = shutil.which("mke2fs", path=TOOLS["PATH"])
        shutil.copy(formatter, tree / "bin/mkfs.ext4")
        copy_libraries([binary, formatter, *programs], tree)
        for program in programs:
            (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
            shutil.copy(program, tree / "usr/bin")
        if programs:
            shutil.copytree("/usr/share/qemu", tree / "usr/share/qemu", symlinks=True)
        if with_python:
            copy_python(self.python, tree)
        (tree / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\nwaggle:x:{USER_ID}:{USER_ID}::/data:/bin/sh\n")
        (tree / "etc/nsswitch.conf").write_text("hosts: files dns\n")
        (tree / "etc/group").write_text(f"root:x:0:\nwaggle:x:{USER_ID}:\n")
        write_program(tree / "start", START)
        write_program(tree / "relay", f"#!/bin/sh\nexec /bin/nc 127.0.0.1 {LOOPBACK_PORT}\n")
        for name in images:
            shutil.copytree(ROOT / "target/images" / name, tree / "images" / name, copy_function=os.link)
            for erofs in prepared.rglob(f"*{digest_of_image(name)}.erofs"):
                place = tree / "cache" / erofs.relative_to(prepared)
                place.parent.mkdir(exist_ok=True)
                place.exists() or place.hardlink_to(erofs)
        self._write_disk(tree)

    def _write_disk(self, tree):
        used = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
        self.disk = self.folder / "disk"
        size_mib = (used >> 20) * 11 // 10 + DISK_FREE_MIB
        # Everything belongs to root; the server's folders get their owner at the start.
        options = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", tree]
        formatter = shutil.which("mke2fs", path=TOOLS["PATH"])
        subprocess.run([formatter, *options, self.disk, f"{size_mib}M"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)

    def _boot(self):
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for inside, outside in self.ports.items())
        kernel = self.folder / "vmlinux"
        with open(kernel, "wb") as out:
            subprocess.run([BINARY, "runner", "kernel", LIBRARY], stdout=out, check=True)
        # One processor, because guests inside sometimes reset themselves with two.
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "microvm,acpi=off", "-accel", "tcg,thread=multi", "-cpu", "EPYC-v2,+svm,+npt"]
            + ["-m", str(MEMORY_MIB), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            + ["-kernel", kernel, "-initrd", self.folder / "initramfs.cpio"]
            # On a busy machine the emulated timers are too slow to pass the kernel's timer check, and to calibrate its clock.
            + ["-append", f"console=hvc0 quiet panic=-1 no_timer_check net.ifnames=0 tsc=reliable tsc_early_khz={tsc_khz()}"]
            + ["-chardev", f"file,id=console,path={self.console}"]
            + ["-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"]
            + ["-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={self.disk}", "-device", "virtio-blk-device,drive=disk"]
            + ["-netdev", f"user,id=net,restrict=on{forwards}", "-device", "virtio-net-device,netdev=net"],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + self.boot_s
        while "nested host is up" not in self.output():
            assert self.process.poll() is None, f"the nested host ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"the nested host did not boot in {self.boot_s} s:\n{self.output()}"
            time.sleep(0.1)

    def output(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def shell(self, script, timeout_s=SHELL_S):
        """Runs a script as the guest's root and returns its output."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._ask(f"exec 2>&1\n{script}\nexec echo {SHELL_END}\n", timeout_s)
            if answer.endswith(SHELL_END):
                return answer.removesuffix(SHELL_END)
            # QEMU accepts connections before anything listens in the guest.
            assert answer == "" and time.monotonic() < deadline, f"the nested host's shell stopped early:\n{answer}"
            time.sleep(0.1)

    def _ask(self, script, timeout_s):
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            with socket.create_connection(("127.0.0.1", self.ports[SHELL_PORT]), timeout=timeout_s) as link:
                link.sendall(script.encode())
                while piece := link.recv(65536):
                    answer += piece
        return answer.decode(errors="replace").rstrip("\n")

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def tsc_khz():
    """The frequency of this machine's time stamp counter, which an emulated processor reads directly."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # rdtsc; shl rdx,32; or rax,rdx; ret
    page.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    ticks, began = read(), time.monotonic()
    time.sleep(CLOCK_S)
    return round((read() - ticks) / (time.monotonic() - began) / 1000)


def copy_libraries(programs, tree):
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for word in listed.split():
            if word.startswith("/"):
                place = tree / word.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, place)


def copy_python(python, tree):
    """Copies the interpreter and its library to the same paths as on this machine."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    skipped = ["__pycache__", "test", "tests", "idlelib", "ensurepip", "lib2to3", "site-packages", "dist-packages", "config-*"]
    shutil.copytree(library, tree / library.relative_to("/"), ignore=shutil.ignore_patterns(*skipped))
    place = tree / python.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(python, place)
    for program in ("peers.py", "inject.py"):
        shutil.copy(pathlib.Path(__file__).with_name(program), tree)
    copy_libraries([python, *library.glob("lib-dynload/*.so")], tree)


def digest_of_image(name):
    index = json.loads((ROOT / "target/images" / name / "index.json").read_text())
    return index["manifests"][0]["digest"].removeprefix("sha256:")


def file_of_image(name, path):
    """The bytes of a file in an image, from the topmost layer that has it."""
    blobs = ROOT / "target/images" / name / "blobs/sha256"
    manifest = json.loads((blobs / digest_of_image(name)).read_text())
    for layer in reversed(manifest["layers"]):
        with tarfile.open(blobs / layer["digest"].removeprefix("sha256:")) as archive:
            for member in archive:
                if member.name.removeprefix("./") == path:
                    return archive.extractfile(member).read()
    raise FileNotFoundError(f"the image {name} has no {path}")


def write_program(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
