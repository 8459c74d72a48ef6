# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Merged images equal the output of an independent unpacker: paths, modes, owners, times, attributes, content."""

import os
import subprocess
import tarfile

import pytest

from layouts import Layer, write_layout
from server import ROOT
from unpacked import differences, merge, mounted, tree, unpack

pytestmark = pytest.mark.outside("mounts images on this machine")

# Maximum number of differences that a failure prints; a fault often affects all files.
SHOWN = 40
# A capability (CAP_NET_RAW, permitted and effective) and an ACL equal to the mode, in the kernel's encoding.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ACL = bytes.fromhex("02000000" + "01000600ffffffff" + "04000400ffffffff" + "20000400ffffffff")


def compare(layout, folder):
    """Unpacks and merges an image; fails with the differences, or returns its paths."""
    unpacked = tree(unpack(layout, folder / "bundle"))
    with mounted(merge(layout, folder / "cache"), folder / "mounted") as root:
        merged = tree(root)
    lines = differences(unpacked, merged)
    rest = f"\n… and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:SHOWN]) + rest
    return merged


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("node", "shell")]


@pytest.mark.parametrize("name", ["base", "python", "foreign", *LONG])
def test_a_merged_image_equals_the_output_of_another_unpacker(name, tmp_path):
    merged = compare(ROOT / "target/images" / name, tmp_path)
    assert any(facts.kind == "file" and facts.mode == "0755" for facts in merged.values())


def test_a_merged_image_with_every_kind_of_entry_equals_the_output_of_another_unpacker(tmp_path):
    merged = compare(odd_image(tmp_path / "layout", tmp_path / "sparse"), tmp_path)
    assert merged["bin/su"].mode == "4755" and merged["tmp"].mode == "1777" and merged["bin/nobody"].mode == "0000"
    assert merged["bin/ping"].xattrs == {"security.capability": CAPABILITY, "user.note": b"a\nb=\0"}
    assert merged["link"].target == "usr/lib" and merged["usr/lib/through"].kind == "file"
    assert merged["was-link/inside"].kind == "file" and merged["was-folder"].target == "usr"
    assert merged["opaque/new"].kind == "file" and "opaque/old" not in merged and "opaque/sub" not in merged
    assert "gone" not in merged and "gone-folder" not in merged and merged["back"].kind == "folder"
    assert merged["sparse"].size == 8 << 20
    assert merged["block"].device == "259:70000"
    assert merged["bin/su"].names == ["bin/su", "hard", "hard-again"] and merged["bin/su"].links == 3
    assert merged["hard-again"].owner == "0:0" and not merged["hard-again"].xattrs
    assert merged["names/two"].names == ["names/three", "names/two"] and merged["names/one"].links == 1
    assert merged[os.fsdecode(b"caf\xe9")].size == 7 and merged[os.fsdecode(b"link-\xff")].target == os.fsdecode(b"caf\xe9")


def test_the_kernel_reads_attributes_and_folders_of_many_blocks(tmp_path):
    layer = Layer()
    large = {f"user.{number}": bytes([number]) * 1500 for number in range(10)}
    layer.add("attributes", content=b"content", xattrs=large)
    # Attributes that leave less of a block than the content needs.
    layer.add("tight", content=b"c" * 100, xattrs={"user.a": b"a" * 3950})
    layer.add("folder", tarfile.DIRTYPE, xattrs=large)
    names = [f"folder/{'n' * (number % 200)}{number}" for number in range(3000)]
    for name in names:
        layer.add(name)
    layout = write_layout(tmp_path / "layout", [layer.end()])
    with mounted(merge(layout, tmp_path / "cache"), tmp_path / "mounted") as root:
        merged = tree(root)
        assert all((root / name).is_file() for name in names)
    assert merged.keys() == {".", "attributes", "tight", "folder", *names}
    assert merged["attributes"].xattrs == merged["folder"].xattrs == large
    assert (merged["tight"].size, merged["tight"].xattrs) == (100, {"user.a": b"a" * 3950})


def odd_image(layout, scratch):
    """An image with every kind of entry, in three layers: gzip, plain tar and gzip."""
    first, second = Layer(), Layer()
    first.add(".", tarfile.DIRTYPE, mtime=1.25)
    for folder in ["bin", "usr", "usr/lib", "was-folder", "opaque", "opaque/sub", "gone-folder", "kept", "both"]:
        first.add(folder, tarfile.DIRTYPE)
    first.add("tmp", tarfile.DIRTYPE, mode=0o1777)
    first.add("shared", tarfile.DIRTYPE, mode=0o2775, gid=50)
    first.add("bin/su", content=b"su", mode=0o4755)
    first.add("bin/nobody", content=b"secret", mode=0)
    first.add("bin/all", content=b"", mode=0o7777, uid=70_000, gid=3_000_000_000)
    first.add("bin/ping", content=b"ping", xattrs={"security.capability": CAPABILITY, "user.note": b"a\nb=\0"})
    first.add("bin/acl", content=b"acl", mode=0o644, xattrs={"system.posix_acl_access": ACL})
    first.add("kept/attributes", tarfile.DIRTYPE, xattrs={"user.a": b"y", "trusted.b": b"x" * 3000})
    first.add("trusted-link", tarfile.SYMTYPE, target="nowhere", xattrs={"trusted.c": b"on a link"})
    first.add("before-the-epoch", content=b"", mtime=-1.5)
    first.add("after-2106", content=b"", mtime=2**33)
    first.add("nanoseconds", content=b"", mtime="1700000000.123456789")
    first.add("d" * 200 + "/" + "f" * 255, content=b"long", parents=True)
    first.add("é ű\n\t'\"\\", content=b"name")
    first.add("long-link", tarfile.SYMTYPE, target="t" * 3000)
    for bytes in [1, 4095, 4096, 4097, 70_000]:
        first.add(f"size-{bytes}", content=os.urandom(bytes))
    first.add("hard", tarfile.LNKTYPE, target="bin/su")
    first.add("hard-to-link", tarfile.LNKTYPE, target="long-link")
    # An unpacker ignores the mode, owner, time and attributes of a hard link's own entry.
    first.add("hard-again", tarfile.LNKTYPE, target="hard", mode=0o600, uid=5, gid=6, mtime=7, xattrs={"user.a": b"of the link"})
    first.add("names", tarfile.DIRTYPE)
    first.add("names/one", content=b"old")
    for name in ["names/two", "names/three", "names/four"]:
        first.add(name, tarfile.LNKTYPE, target="names/one")
    first.add(os.fsdecode(b"caf\xe9"), content=b"latin 1")
    first.add(os.fsdecode(b"link-\xff"), tarfile.SYMTYPE, target=os.fsdecode(b"caf\xe9"))
    first.add("char", tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    first.add("block", tarfile.BLKTYPE, device=(259, 70_000), mode=0o660, gid=6)
    first.add("pipe", tarfile.FIFOTYPE, mode=0o600)
    first.add("link", tarfile.SYMTYPE, target="usr/lib")
    first.add("was-link", tarfile.SYMTYPE, target="usr")
    first.add("was-file", content=b"file")
    for name in ["was-folder/old", "opaque/old", "opaque/sub/old", "gone-folder/old", "gone", "both/old", "twice"]:
        first.add(name, content=name.encode())
    first.add("back", content=b"file")

    second.add("was-link", tarfile.DIRTYPE)
    second.add("was-link/inside", content=b"a folder's")
    second.add("was-folder", tarfile.SYMTYPE, target="usr")
    second.add("was-file", tarfile.DIRTYPE, mode=0o700)
    second.add("link/through", content=b"through a link")
    second.add("opaque", tarfile.DIRTYPE, mode=0o711)
    second.add("opaque/new", content=b"new")
    second.add("opaque/.wh..wh..opq")
    second.add(".wh.gone")
    second.add(".wh.gone-folder")
    second.add(".wh.never-was")
    second.add(".wh.back")
    second.add("back", tarfile.DIRTYPE)
    second.add("both", tarfile.DIRTYPE, mode=0o750, uid=7, mtime=5)
    second.add("both/new", content=b"new")
    second.add("kept/new", content=b"in a folder that this layer does not name")
    second.add("names/one", content=b"new")
    second.add("names/.wh.four")
    second.add("hard-below", tarfile.LNKTYPE, target="bin/ping")
    second.add("twice", content=b"first")
    second.add("twice", content=b"second", mode=0o600)
    return write_layout(layout, [first.end(), second.end(), sparse_layer(scratch)])


def sparse_layer(folder):
    """A layer with a sparse file, made with GNU tar, because Python's tarfile does not record holes."""
    folder.mkdir()
    with open(folder / "sparse", "wb") as file:
        for at in range(0, 6 << 20, 1 << 20):
            file.seek(at + 5000)
            file.write(b"data")
        file.truncate(8 << 20)
    command = ["tar", "--create", "--sparse", "--format=posix", "--sparse-version=1.0", "--owner=0", "--group=0", "sparse"]
    layer = subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    assert len(layer) < 1 << 20
    return layer
