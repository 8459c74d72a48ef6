# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The program on minimal systems: a root with only the C library, and a Debian with the package."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from server import CALL_S, ROOT

pytestmark = [
    pytest.mark.outside("makes separate root file systems"),
    pytest.mark.packages,
]

RELEASE = pathlib.Path(os.environ.get("WAGGLE_RELEASE_BINARY", ROOT / "target/release/waggle"))
PACKAGES = ROOT / "target/packages"

# Runs a command with a folder as its root; only two devices and /proc are mounted there.
ENTER = """
root=$1; shift
for device in null urandom; do touch "$root/dev/$device"; mount --bind /dev/$device "$root/dev/$device"; done
mount --rbind /proc "$root/proc"
exec chroot "$root" "$@"
"""


def enter(root, *command, **variables):
    # The tests' own environment must not leak in.
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/root", **variables}
    namespaces = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    return subprocess.run(
        [shutil.which("unshare"), *namespaces[1:], "/bin/sh", "-euc", ENTER, "sh", root, *command],
        env=environment | {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        timeout=CALL_S,
        check=False,
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A root that contains only the program and the libraries that its loader needs."""
    if not RELEASE.exists():
        pytest.fail(f"{RELEASE} is missing: run ./taskw build")
    root = tmp_path_factory.mktemp("bare")
    for folder in ["dev", "proc", "root", "tmp", "bin"]:
        (root / folder).mkdir()
    shutil.copy(RELEASE, root / "bin/waggle")
    linked = subprocess.run(["ldd", RELEASE], capture_output=True, text=True, check=True).stdout
    for word in linked.split():
        if word.startswith("/"):
            place = root / word.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    return root


def test_the_program_needs_only_the_c_library_and_libgcc(bare):
    files = sorted(path.name for path in bare.rglob("*") if path.is_file())
    assert files == ["ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1", "libm.so.6", "waggle"]
    ran = enter(bare, "/bin/waggle", "version")
    assert ran.returncode == 0, ran.stderr
    assert "guest agent   " in ran.stdout and "sha256" in ran.stdout
    assert "libkrunfw.so.5" in ran.stdout, "the program was built without firmware: run ./taskw build"
    licences = enter(bare, "/bin/waggle", "licences").stdout
    assert "Apache License" in licences and "GNU LESSER GENERAL PUBLIC LICENSE" in licences


def test_the_doctor_works_on_a_bare_machine_and_unpacks_the_firmware(bare):
    ran = enter(bare, "/bin/waggle", "doctor", "--json")
    report = json.loads(ran.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert ran.returncode == 1
    assert {name: checks[name]["state"] for name in ["guest agent", "libkrunfw", "KVM device", "QEMU", "mkfs.ext4"]} == {
        "guest agent": "ok", "libkrunfw": "ok", "KVM device": "missing", "QEMU": "missing", "mkfs.ext4": "missing",
    }
    (unpacked,) = (bare / "root/.local/share/waggle/firmware").glob("libkrunfw*")
    assert unpacked.parent.stat().st_mode & 0o777 == 0o700
    # A modified file is replaced on the next use.
    whole = unpacked.read_bytes()
    unpacked.write_bytes(b"x" + whole[1:])
    again = json.loads(enter(bare, "/bin/waggle", "doctor", "--json", "--no-boot").stdout)
    assert {check["name"]: check["state"] for check in again["checks"]}["libkrunfw"] == "ok"
    assert unpacked.read_bytes() == whole


def test_a_server_on_a_bare_machine_says_what_it_lacks(bare):
    ran = enter(bare, "/bin/waggle", "serve", WAGGLE_LISTEN_ADDR="127.0.0.1:0")
    assert ran.returncode == 1
    assert "program qemu-system-x86_64 not found" in ran.stderr and "apt-get install" in ran.stderr


def test_the_package_installs_on_a_bare_debian(tmp_path):
    package = next(PACKAGES.glob("waggle_*_amd64.deb"), None)
    if package is None:
        pytest.fail("target/packages has no package: run ./taskw deb")
    root = tmp_path / "debian"
    commands = [
        "dpkg --install /tmp/waggle.deb",
        "waggle version && waggle licences >/dev/null && id waggle",
        "cd /usr/share && ls man/man1/waggle-serve.1.gz bash-completion/completions/waggle zsh/vendor-completions/_waggle",
        "! waggle doctor --no-boot",
    ]
    hooks = [f"--customize-hook=chroot \"$1\" sh -ec '{command}'" for command in commands]
    upload = f"--customize-hook=upload {package} /tmp/waggle.deb"
    # Dependencies that a minimal Debian lacks.
    include = "--include=e2fsprogs,passwd,libgcc-s1"
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", include, upload, *hooks, "bookworm", root],
        capture_output=True,
        text=True,
        timeout=CALL_S * 3,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    # mmdebstrap writes the output of hooks to standard error.
    told = made.stderr
    assert "libkrunfw.so.5" in told and "uid=" in told and "(kvm)" in told
    assert "man1/waggle-serve.1.gz" in told and "vendor-completions/_waggle" in told
    assert "ok       mkfs.ext4" in told and "apt-get install qemu-system-x86" in told
    assert (root / "lib/systemd/system/waggle.service").exists()
    subprocess.run(["rm", "-rf", root], check=True)
