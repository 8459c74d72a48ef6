# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Images as seen by two independent programs: unpacked by umoci, and merged by waggle and mounted by the kernel."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import stat
import subprocess

from server import BINARY

KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "pipe",
}
# Attributes that images lose on purpose; images/README.md lists them.
DROPPED_XATTRS = ("system.posix_acl_access", "system.posix_acl_default", "trusted.overlay.")
HASHED_BYTES = 1 << 20
# The maximum length of a fact in a line that reports a difference.
SHOWN_CHARS = 200


@dataclasses.dataclass
class Facts:
    """The facts that an image records about a path."""

    kind: str
    mode: str
    owner: str
    mtime_ns: int
    xattrs: dict
    size: int | None = None
    sha256: str | None = None
    target: str | None = None
    device: str | None = None
    # The number of links, and all paths of the inode, of anything but a folder.
    links: int | None = None
    names: list | None = None


def unpack(layout, folder):
    """Unpacks a layout's image with umoci. Only root can set the owners and make the devices."""
    assert os.geteuid() == 0, "unpacking and mounting images requires root: run the end-to-end tests as root"
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", folder], check=True)
    return pathlib.Path(folder) / "rootfs"


def merge(layout, cache):
    """Merges a layout's image with waggle, and returns the merged file."""
    subprocess.run([BINARY, "image", "pull", f"oci:{layout}", "--image-cache-dir", cache], check=True, stdout=subprocess.DEVNULL)
    (erofs,) = pathlib.Path(cache).glob("merged-*/*.erofs")
    return erofs


@contextlib.contextmanager
def mounted(erofs, folder):
    folder.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", erofs, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def tree(root):
    """The facts about a folder and everything below it, by path."""
    found = {".": facts(root)}
    ahead, names = [str(root)], collections.defaultdict(list)
    while ahead:
        for entry in os.scandir(ahead.pop()):
            path = os.path.relpath(entry.path, root)
            found[path] = facts(entry.path)
            if entry.is_dir(follow_symlinks=False):
                ahead.append(entry.path)
            else:
                names[entry.inode()].append(path)
    for paths in names.values():
        for path in paths:
            found[path].names = sorted(paths)
    return found


def facts(path):
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(DROPPED_XATTRS)]
    result = Facts(
        kind=KINDS.get(kind, oct(kind)),
        mode=f"{stat.S_IMODE(found.st_mode):04o}",
        owner=f"{found.st_uid}:{found.st_gid}",
        mtime_ns=found.st_mtime_ns,
        xattrs={name: os.getxattr(path, name, follow_symlinks=False) for name in names},
    )
    if kind != stat.S_IFDIR:
        result.links = found.st_nlink
    if kind == stat.S_IFREG:
        result.size, result.sha256 = found.st_size, sha256(path)
    elif kind == stat.S_IFLNK:
        result.target = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        result.device = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return result


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(HASHED_BYTES):
            digest.update(data)
    return digest.hexdigest()


def differences(unpacked, merged):
    """One line for each path that only one image has, and for each fact that differs."""
    lines = [f"{path}: missing in the merged image" for path in sorted(unpacked.keys() - merged.keys())]
    lines += [f"{path}: only in the merged image" for path in sorted(merged.keys() - unpacked.keys())]
    for path in sorted(unpacked.keys() & merged.keys()):
        one, other = dataclasses.asdict(unpacked[path]), dataclasses.asdict(merged[path])
        unequal = [fact for fact in one if one[fact] != other[fact]]
        lines += [f"{path}: {fact} {short(one[fact])} unpacked, {short(other[fact])} merged" for fact in unequal]
    return lines


def short(value):
    """Shortens a fact, because attributes can have several KiB."""
    text = str(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
