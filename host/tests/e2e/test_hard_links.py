# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Hard links of an image, in a machine; and parts of images that other engines accept too: names that are not UTF-8,
variables without a value, and layers whose media type is not their compression.
"""

import gzip
import os
import subprocess
import tarfile

import pytest

from layouts import Layer, write_layout
from nested import file_of_image
from repositories import change_image

APPLETS = 400


def busybox_image(folder):
    """An image of busybox with 400 names, made with GNU tar, and a layer that changes some of them."""
    bin = folder / "root/bin"
    bin.mkdir(parents=True)
    (bin / "busybox").write_bytes(file_of_image("foreign", "bin/busybox"))
    (bin / "busybox").chmod(0o755)
    applets = subprocess.run([bin / "busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    applets = [name for name in applets if name != "busybox"]
    for name in (applets + [f"spare-{number}" for number in range(APPLETS)])[: APPLETS - 1]:
        (bin / name).hardlink_to(bin / "busybox")
    command = ["tar", "--create", "--owner=0", "--group=0", "--directory", folder / "root", "bin"]
    lower = subprocess.run(command, check=True, capture_output=True).stdout

    upper = Layer()
    # One name is replaced and one removed, and two are added.
    upper.add("bin/uname", content=b"#!/bin/sh\necho replaced\n", mode=0o755)
    upper.add("bin/.wh.yes")
    upper.add("bin/one-more", tarfile.LNKTYPE, target="bin/busybox")
    upper.add("bin/and-one-more", tarfile.LNKTYPE, target="bin/one-more")
    upper.add("data", tarfile.DIRTYPE, uid=1000, gid=1000)
    upper.add("data/one", content=b"shared\n" * 1000, uid=1000, gid=1000)
    for name in ["data/two", "data/three"]:
        upper.add(name, tarfile.LNKTYPE, target="data/one")
    upper.add("data/link", tarfile.SYMTYPE, target="one", uid=1000, gid=1000)
    upper.add("data/link2", tarfile.LNKTYPE, target="data/link")
    upper.add(os.fsdecode(b"names/caf\xe9"), content=b"latin 1\n", parents=True)
    layout = write_layout(folder / "image", [lower, upper.end()])

    def relabel(manifest, config):
        first, second = manifest["layers"]
        assert gzip.decompress((layout / "blobs/sha256" / first["digest"].removeprefix("sha256:")).read_bytes()) == lower
        first["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
        second["mediaType"] = "application/x-layer"
        config["config"]["Env"] = ["PATH=/bin", "WITHOUT_VALUE", "=x", "GREETING=hello"]

    change_image(layout, relabel)
    return layout, len(lower)


CODE = r"""
cd /data
stat -c '%h' /bin/busybox /bin/ls /bin/one-more /bin/uname /data/one /data/link /data
stat -c '%i' /bin/busybox /bin/ls /bin/one-more /bin/and-one-more | sort -u | wc -l
stat -c '%i' /data/one /data/two /data/three | sort -u | wc -l
stat -c '%i' /bin/busybox /bin/uname /data/one /data/link /data /bin / | sort -u | wc -l
[ "$(stat -c %i /bin/ls)" = "$(ls -i /bin/ls | awk '{ print $1 }')" ] && echo listed
[ "$(du -sk /bin | cut -f 1)" -lt "$(( $(stat -c %s /bin/busybox) / 1024 * 2 ))" ] && echo small
ls /bin/yes 2>/dev/null || /bin/uname
cp -a /data ~/copy && stat -c '%h' ~/copy/one ~/copy/three
tar -cf ~/all.tar -C / data && mkdir ~/untarred && tar -xf ~/all.tar -C ~/untarred && stat -c '%h' ~/untarred/data/two
stat -c '%s' ~/all.tar
echo changed >/data/one
rm /data/three
cat /data/one /data/two; stat -c '%h' /data/one
printf '%s\n' /names/* | od -An -c; cat /names/caf*
echo "$GREETING"; env | grep -c -e WITHOUT_VALUE -e '^='
"""


@pytest.mark.outside("makes an image in a folder of this machine")
async def test_hard_links_of_an_image_are_hard_links_in_the_guest(serve, tmp_path):
    layout, layer_bytes = busybox_image(tmp_path)
    server = serve(IMAGE_SHELL=f"oci:{layout}", IMAGE_CACHE_DIR=str(tmp_path / "cache")).start()
    async with server.client() as tools, tools.environment("shell") as made:
        ran = await tools.call("execute", environment_id=made["environment_id"], code=CODE)
    lines = [" ".join(line.split()) for line in ran["stdout"].splitlines()]
    # 400 names, one of them replaced and one removed, and two more.
    assert lines[:7] == ["400", "400", "400", "1", "3", "2", "2"], ran
    # Names of one inode have one number, other inodes have others.
    assert lines[7:10] == ["1", "1", "7"], ran
    assert lines[10:13] == ["listed", "small", "replaced"], ran
    assert lines[13:16] == ["3", "3", "3"], ran
    # The archive has the content once.
    assert int(lines[16]) < 15_000, ran
    # The names still are one file when it has been written.
    assert lines[17:20] == ["changed", "changed", "2"], ran
    assert lines[20:] == [r"/ n a m e s / c a f 351 \n", "latin 1", "hello", "0"], ran
    (merged,) = (tmp_path / "cache").glob("merged-*/*.erofs")
    assert merged.stat().st_size < layer_bytes + 100_000
