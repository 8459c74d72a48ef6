# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A user without any files starts the program for the first time: every failure says what to do next."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from server import BINARY, CALL_S, ROOT, free_port

pytestmark = pytest.mark.outside("hides programs and folders of this machine from a user")

# The user `nobody`, who owns no files.
STRANGER = 65534

# A /dev in which kvm belongs to another user.
FOREIGN_KVM = """
mount -t tmpfs -o mode=755 none "$1/dev"
for device in null zero urandom; do touch "$1/dev/$device"; mount --bind /dev/$device "$1/dev/$device"; done
install -m 600 /dev/null "$1/dev/kvm"
mount --rbind "$1/dev" /dev
"""
NO_MKFS = "mount -t tmpfs none /usr/sbin; [ -h /sbin ] || mount -t tmpfs none /sbin"
LOW_DISK = 'mount -t tmpfs -o size=200m,mode=1777 none "$1/full"'
FULL_DISK = 'mount -t tmpfs -o size=64k,mode=1777 none "$1/full"'


class Stranger:
    """A home with the program and the files that machines need; the user owns nothing else on this machine."""

    def __init__(self):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="wg-"))
        self.home.chmod(0o755)
        os.link(BINARY, self.home / "waggle")
        for name in ["firmware", "images/foreign"]:
            shutil.copytree(ROOT / "target" / name, self.home / name, copy_function=os.link)
        for folder in ["data", "cache", "closed", "open", "full", "dev", "bin"]:
            (self.home / folder).mkdir()
        (self.home / "closed").chmod(0o700)
        (self.home / "open").chmod(0o777)
        (self.home / "tokens").write_text("ada ada-has-this-token-1\n")
        (self.home / "tokens").chmod(0o600)
        (self.home / "hello").write_text("echo hello; id -u\n")
        program = "qemu-system-x86_64"
        (self.home / "bin" / program).symlink_to(self._reachable(program))
        for folder in ["data", "cache"]:
            os.chown(self.home / folder, STRANGER, STRANGER)

    def _reachable(self, program):
        """A path at which every user can read a program; a hard link if necessary."""
        found = pathlib.Path(shutil.which(program)).resolve()
        if found.is_relative_to("/usr"):
            return found
        os.link(found, self.home / f"{program}.linked")
        return self.home / f"{program}.linked"

    def run(self, *arguments, before="", **settings):
        """Runs the program as this user; `before` runs as root first, in a mount namespace of this process."""
        variables = {
            "PATH": f"{self.home}/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "WAGGLE_LISTEN_ADDR": f"127.0.0.1:{free_port()}",
            "WAGGLE_DATA_DIR": f"{self.home}/data",
            "WAGGLE_IMAGE_CACHE_DIR": f"{self.home}/cache",
            "WAGGLE_FIRMWARE": f"{self.home}/firmware",
            "WAGGLE_IMAGE_SHELL": f"oci:{self.home}/images/foreign",
        }
        variables |= {name: value and value.replace("HOME", str(self.home)) for name, value in settings.items()}
        enter = ["unshare", "--mount", "sh", "-euc", f'{before}\nshift; exec "$@"', "sh", self.home]
        user = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "env", "-i"]
        program = [f"{name}={value}" for name, value in variables.items() if value] + [self.home / "waggle", *arguments]
        return subprocess.run(
            [*enter, shutil.which("setpriv"), *user[1:], *program],
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )


@pytest.fixture(scope="module")
def stranger():
    user = Stranger()
    yield user
    shutil.rmtree(user.home)


DOCTOR = "hint: `waggle doctor`"

# Faults by name, with the settings that cause each and the words that the error must contain.
SERVE = {
    "no qemu": ({"PATH": "/usr/lib"}, ["software emulation (KVM unusable", "qemu-system-x86_64", "apt-get install qemu-system-x86", DOCTOR]),
    "no firmware": ({"WAGGLE_FIRMWARE": "HOME/nothing"}, ["libkrunfw.so.5 not found at HOME/nothing", "WAGGLE_KERNEL", DOCTOR]),
    "no kernel": ({"WAGGLE_KERNEL": "HOME/nothing"}, ["HOME/nothing", "must name a vmlinux", "WAGGLE_KERNEL", DOCTOR]),
    "data folder of another": ({"WAGGLE_DATA_DIR": "HOME/closed"}, ["closed", "Permission denied", "WAGGLE_DATA_DIR"]),
    "image folder of another": (
        {"WAGGLE_IMAGE_CACHE_DIR": "HOME/closed"}, ["closed", "Permission denied", "WAGGLE_IMAGE_CACHE_DIR"]
    ),
    "data folder that others can replace": (
        {"WAGGLE_DATA_DIR": "HOME/open/data"}, ["HOME/open, which is above it (mode 777)", "chmod +t", "WAGGLE_DATA_DIR"]
    ),
    "tokens of another": ({"WAGGLE_AUTH_TOKENS_FILE": "HOME/tokens"}, ["HOME/tokens", "server's user", "mode 0600"]),
    "no tokens": ({"WAGGLE_AUTH_TOKENS_FILE": "HOME/none"}, ["HOME/none", "NAME TOKEN"]),
    "no home": ({"HOME": None, "WAGGLE_DATA_DIR": None}, ["WAGGLE_DATA_DIR"]),
}


@pytest.mark.parametrize("wrong", SERVE)
def test_a_first_start_that_fails_says_what_to_do(stranger, wrong):
    settings, said = SERVE[wrong]
    ran = stranger.run("serve", **settings)
    assert ran.returncode in (1, 2), ran
    for word in said:
        assert word.replace("HOME", str(stranger.home)) in ran.stderr, ran.stderr


def test_a_host_without_mkfs_says_so_at_the_start(stranger):
    ran = stranger.run("serve", before=NO_MKFS)
    assert ran.returncode == 1
    assert "mkfs.ext4" in ran.stderr and "e2fsprogs" in ran.stderr


def test_an_inaccessible_kvm_device_is_reported_with_the_command_that_helps(stranger):
    ran = stranger.run("serve", before=FOREIGN_KVM, WAGGLE_BACKEND="krun")
    assert ran.returncode == 1
    for word in ["/dev/kvm", "usermod -aG kvm", "WAGGLE_BACKEND=auto", DOCTOR]:
        assert word in ran.stderr, ran.stderr


# Faults that stop a run, but not the start of a server: preparations, settings, and words of the error.
RUN = {
    "no registry": ("", {"WAGGLE_IMAGE_SHELL": "127.0.0.1:1/none/none:1"}, ["./taskw images", "WAGGLE_IMAGE_SHELL"]),
    "no layout": ("", {"WAGGLE_IMAGE_SHELL": "oci:HOME/none"}, ["HOME/none", "./taskw images", "skopeo copy"]),
    "no room for disks": (
        FULL_DISK,
        {"WAGGLE_DATA_DIR": "HOME/full", "WAGGLE_DISK_RESERVE_MB": "0"},
        ["No space left", "free disk space", "WAGGLE_DATA_DIR"],
    ),
    "no room for images": (
        FULL_DISK,
        {"WAGGLE_IMAGE_CACHE_DIR": "HOME/full", "WAGGLE_DISK_RESERVE_MB": "0"},
        ["No space left", "free disk space", "WAGGLE_IMAGE_CACHE_DIR"],
    ),
    "less room than the reserve for disks": (
        LOW_DISK, {"WAGGLE_DATA_DIR": "HOME/full"}, ["a reserve of 1024 MiB must remain free", "WAGGLE_DISK_RESERVE_MB"]
    ),
    "less room than the reserve for images": (
        LOW_DISK, {"WAGGLE_IMAGE_CACHE_DIR": "HOME/full"}, ["a reserve of 1024 MiB must remain free", "WAGGLE_DISK_RESERVE_MB"]
    ),
}


@pytest.mark.parametrize("wrong", RUN)
def test_a_first_run_that_fails_says_what_to_do(stranger, wrong):
    before, settings, said = RUN[wrong]
    ran = stranger.run("run", "shell", stranger.home / "hello", before=before, **settings)
    assert (ran.returncode, ran.stdout) == (1, ""), ran
    for word in said:
        assert word.replace("HOME", str(stranger.home)) in ran.stderr, ran.stderr


def test_a_user_who_owns_nothing_else_runs_a_machine(stranger):
    ran = stranger.run("run", "shell", stranger.home / "hello")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "hello\n1000\n", "")
