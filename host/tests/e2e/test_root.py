# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The root of a machine is one file system, and has the folders that programs expect, whatever the image has."""

import json
import tarfile

import pytest

from repositories import small_image

MADE_HERE = "makes an image in a folder of this machine"


def links(layer):
    """Links to missing folders, as in images of ostree and bootc, and longer ones."""
    for name, target in [
        ("home", "var/home"),
        ("root", "var/roothome"),
        ("tmp", "sysroot/tmp"),
        ("var/tmp", "../sysroot/./var-tmp/"),
        ("run", "/sysroot/../sysroot/run"),
        ("proc", "kernel/proc"),
        ("etc/passwd", "/usr/lib/none/passwd"),
        ("etc/group", "none"),
        ("etc/resolv.conf", "/run/none/resolv.conf"),
        ("etc/hosts", "../run/none/hosts"),
    ]:
        layer.add(name, tarfile.SYMTYPE, target=target)


def files(layer):
    """Files, pipes and cycles of links in place of folders, and the other way round."""
    for name in ["home", "tmp"]:
        layer.add(name, content=b"a file\n")
    layer.add("root", tarfile.FIFOTYPE)
    layer.add("var/tmp", tarfile.SYMTYPE, target="tmp")
    layer.add("run", tarfile.SYMTYPE, target="/run")
    layer.add("etc/passwd", tarfile.FIFOTYPE)
    layer.add("etc/group", tarfile.CHRTYPE, device=(1, 3))
    layer.add("etc/resolv.conf", tarfile.DIRTYPE)
    layer.add("etc/hosts", tarfile.FIFOTYPE)


def kernel_links(layer):
    """Links to missing files in folders that only the kernel and the agent fill."""
    for name, target in [("home", "/proc/none"), ("root", "sys/none"), ("tmp", "/proc/x"), ("var/tmp", "/dev/null"), ("run", "dev/run")]:
        layer.add(name, tarfile.SYMTYPE, target=target)


def folders(layer):
    """Folders with content in place of files. The machine starts, without what the files are for."""
    layer.add("etc", content=b"a file\n")
    for name in ["etc/passwd", "etc/group", "etc/resolv.conf"]:
        layer.add(name, tarfile.DIRTYPE, parents=name == "etc/passwd")
        layer.add(f"{name}/kept", content=b"kept\n")
    layer.add("home/sandbox", content=b"a file\n", parents=True)


WORKS = """
set -e
for folder in ~ /tmp /var/tmp; do echo text >$folder/file; cat $folder/file; done
cd ~ && pwd && id -u && ls -d /proc/self /sys/kernel /dev/null
stat -c '%a %u' /tmp/ /var/tmp/ /root/
"""
WORKED = ["text"] * 3 + ["/home/sandbox", "1000", "/dev/null", "/proc/self", "/sys/kernel", "1777 0", "1777 0", "700 0"]


@pytest.mark.outside(MADE_HERE)
async def test_an_image_with_links_into_the_kernels_folders_starts(serve, tmp_path):
    server = serve(IMAGE_SHELL=small_image(tmp_path / "image", kernel_links), IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code=WORKS)
        assert (ran["exit_code"], ran["stderr"], ran["stdout"].splitlines()) == (0, "", WORKED), ran


@pytest.mark.outside(MADE_HERE)
async def test_an_image_with_anything_in_place_of_its_folders_and_files_starts(serve, tmp_path):
    made = {name: small_image(tmp_path / name, fill) for name, fill in [("a", links), ("b", files), ("c", folders)]}
    server = serve(IMAGE_SHELL=made["a"], IMAGE_PYTHON=made["b"], IMAGE_NODE=made["c"], IMAGE_CACHE_DIR=str(tmp_path / "cache"))
    server.start()
    async with server.client() as tools:

        async def run(made, code):
            ran = await tools.call("execute", environment_id=made["environment_id"], code=code, language="shell")
            assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
            return ran["stdout"].splitlines()

        async def write_and_read(made):
            arguments = {"environment_id": made["environment_id"], "path": "a/b"}
            await tools.call("write_file", content="written", **arguments)
            assert await tools.text("read_file", **arguments) == "written"

        entries = "whoami; id -gn; cat /etc/resolv.conf; tail -n 1 /etc/hosts"
        has_entries = ["sandbox", "sandbox", "nameserver 10.0.77.1"]
        async with tools.environment("shell") as one:
            assert await run(one, WORKS) == WORKED
            assert await run(one, entries) == [*has_entries, "127.0.0.1 env-" + one["environment_id"][:8]]
            # The links of folders are kept, and those of files are replaced.
            code = "for path in /home /root /tmp /var/tmp /run /proc; do readlink $path; done; stat -c %F /etc/passwd /etc/group /etc/resolv.conf /etc/hosts"
            targets = ["var/home", "var/roothome", "sysroot/tmp", "../sysroot/./var-tmp/", "/sysroot/../sysroot/run", "kernel/proc"]
            assert await run(one, code) == targets + ["regular file"] * 4
            await write_and_read(one)
        async with tools.environment("python") as one:
            assert await run(one, WORKS) == WORKED
            assert await run(one, entries) == [*has_entries, "127.0.0.1 env-" + one["environment_id"][:8]]
            await write_and_read(one)
        async with tools.environment("node") as one:
            assert await run(one, WORKS) == WORKED
            assert await run(one, "cat /etc/*/kept; whoami 2>/dev/null || echo $USER") == ["kept"] * 3 + ["sandbox"]
            await write_and_read(one)


def runtime_folders(layer):
    """Folders in /run as packages of servers create them."""
    layer.add("run/database", tarfile.DIRTYPE, mode=0o2775, uid=1000, gid=1000)
    layer.add("run/lock", tarfile.DIRTYPE, mode=0o1777)
    layer.add("run/closed", tarfile.DIRTYPE, mode=0o755)
    layer.add("run/stamp", content=b"kept\n")
    layer.add("run/waggle", tarfile.SYMTYPE, target="/run/database")


RUNTIME = """
set -e
cat /run/stamp /var/run/stamp
stat -c '%n %a %u' /run /run/database /run/lock /run/closed
echo 1 >/run/database/server.pid
ln -s 1 /var/run/lock/name
touch /run/closed/x /run/x /run/waggle/x /run/waggle/code/x 2>/dev/null || true
ls /run /run/database /run/lock
"""


@pytest.mark.outside(MADE_HERE)
async def test_run_keeps_the_folders_and_files_of_the_image(serve, tmp_path):
    def fill(layer):
        runtime_folders(layer)
        layer.add("var/run", tarfile.SYMTYPE, target="/run")

    server = serve(IMAGE_SHELL=small_image(tmp_path / "image", fill), IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code=RUNTIME)
        assert (ran["exit_code"], ran["stderr"]) == (0, ""), ran
        folders = ["/run 755 0", "/run/database 2775 1000", "/run/lock 1777 0", "/run/closed 755 0"]
        # The image's link is replaced by the agent's own folder.
        listed = ["/run:", "closed", "database", "lock", "stamp", "waggle"]
        assert ran["stdout"].split("\n/run/database:")[0].split() == ["kept", "kept", *" ".join(folders).split(), *listed], ran["stdout"]


ONE_FILE_SYSTEM = """
import json, os, subprocess
def unequal(folder):
    return [entry.path for entry in os.scandir(folder) if entry.inode() != entry.stat(follow_symlinks=False).st_ino]
os.makedirs("own/below"); open("own/file", "w").close(); open("own/below/file", "w").write("x" * 10000)
shown = {folder: len(unequal(folder)) for folder in ["/usr", "/usr/bin", "/usr/lib", "/etc", os.path.expanduser("~"), "own"]}
devices = {os.lstat(path).st_dev for path in ["/usr", "/usr/bin/env", "/etc/passwd", "/etc", "own", "own/file"]}
numbers = {}
for folder, _, names in os.walk("/usr/share"):
    for path in [os.path.join(folder, name) for name in names]:
        stat = os.lstat(path)
        if stat.st_nlink == 1: numbers.setdefault(stat.st_ino, []).append(path)
used = [subprocess.check_output(["du", flags, "/usr/share"], text=True).split()[0] for flags in ["-sk", "-skx"]]
# A folder of the image, which belongs to the user.
os.rename("venv", "renamed"); os.rename("renamed/bin", "renamed/other"); os.rename("renamed/other", "renamed/bin")
renamed = [os.path.isfile("renamed/pyvenv.cfg"), os.path.lexists("renamed/bin/python3"), os.path.lexists("venv")]
def unnamed(folder):
    with os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "w+") as file:
        file.write("text"); file.flush()
        os.link(f"/proc/self/fd/{file.fileno()}", f"{folder}/linked", src_dir_fd=0, follow_symlinks=True)
    text = open(f"{folder}/linked").read(); os.remove(f"{folder}/linked")
    return text
print(json.dumps([shown, len(devices), [paths for paths in numbers.values() if len(paths) > 1], used[0] == used[1], renamed,
                  [unnamed(folder) for folder in [".", "/tmp", "/var/tmp", "/dev/shm"]]]))
"""


async def test_files_of_the_image_and_of_the_user_form_one_file_system(server):
    async with server.client() as tools, tools.environment("python") as made:
        result = await tools.call("execute", environment_id=made["environment_id"], code=ONE_FILE_SYSTEM)
        assert (result["exit_code"], result["stderr"]) == (0, ""), result
        unequal, devices, same, used, renamed, unnamed = json.loads(result["stdout"])
        assert set(unequal.values()) == {0} and devices == 1 and same == [] and used, result["stdout"]
        assert renamed == [True, True, False] and unnamed == ["text"] * 4
