# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Measures how fast the layers of an image become a disk, and what the size of an image costs an environment.

`./taskw bench-images` builds everything that the benchmark needs and starts it. The benchmark prints and writes the page
docs/benchmarks/images.md. With --quick it measures fewer rounds and only prints the page.
"""

import asyncio
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("WAGGLE_BINARY", str(ROOT / "target/release/waggle"))
sys.path.insert(0, str(ROOT / "host/tests/e2e"))

from hardware import processors  # noqa: E402
from layouts import Layer, write_layout  # noqa: E402
from repositories import add_layer  # noqa: E402
from server import BINARY, Server  # noqa: E402
from unpacked import merge  # noqa: E402

QUICK = "--quick" in sys.argv
ROUNDS = 2 if QUICK else 7
CREATES = 3 if QUICK else 10
MANY = 10
# The amount that each of the many environments writes.
WRITTEN_MIB = 8
MEMORY_MIB = 192
# The project's images to merge: `python` has many small files, and `node` has a few large files.
IMAGES = ["python", "node"]
SMALL_MB, LARGE_MB = 50, 500
MB = 1_000_000
PAGE = ROOT / "docs/benchmarks/images.md"


def seconds(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def blocks(path):
    """Returns the disk space that a file or a folder uses, in bytes."""
    return int(subprocess.run(["du", "-s", "--block-size=1", path], check=True, capture_output=True).stdout.split()[0])


def speeds(name, folder):
    """Measures each way from an image's layers to a disk.

    Returns the median seconds of each step, the bytes of content, the number of entries, and the sizes of both disks.
    """
    layout = ROOT / "target/images" / name
    cache, bundle, other = folder / "cache", folder / "bundle", folder / "other.erofs"
    times = {"merge": [], "unpack": [], "mkfs": []}
    for _ in range(ROUNDS):
        for path in (cache, bundle):
            shutil.rmtree(path, ignore_errors=True)
        other.unlink(missing_ok=True)
        for step, work in [
            ("merge", lambda: merge(layout, cache)),
            ("unpack", lambda: subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", bundle], check=True)),
            ("mkfs", lambda: subprocess.run(["mkfs.erofs", "--quiet", other, bundle / "rootfs"], check=True)),
        ]:
            # Pending writes of an earlier step must not slow down the next step.
            os.sync()
            times[step].append(seconds(work))
    rootfs = bundle / "rootfs"
    content = sum(path.lstat().st_size for path in rootfs.rglob("*") if path.is_file() and not path.is_symlink())
    files = sum(1 for _ in rootfs.rglob("*"))
    (ours,) = cache.glob("merged-*/*.erofs")
    sizes = {"ours": blocks(ours), "theirs": blocks(other)}
    return {step: statistics.median(found) for step, found in times.items()}, content, files, sizes


def speed_table(folder):
    lines = [
        "| image | content | `waggle image pull` | `umoci unpack` | `mkfs.erofs` | both | waggle against both | file |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in IMAGES:
        took, content, files, sizes = speeds(name, folder)
        both = took["unpack"] + took["mkfs"]

        def speed(time_s):
            return f"{content / MB / time_s:.0f} MB/s ({time_s:.2f} s)"

        cells = [name, f"{content / MB:.0f} MB, {files:,} entries", *(speed(took[step]) for step in ("merge", "unpack", "mkfs"))]
        cells += [speed(both), f"{both / took['merge']:.1f} ×", f"{sizes['ours'] / MB:.0f} MB, {sizes['theirs'] / MB:.0f} MB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image_of(megabytes, folder):
    """Returns a copy of the image `foreign` with one more layer of this many files of 1 MB each."""
    layout = folder / f"image-{megabytes}"
    shutil.copytree(ROOT / "target/images/foreign", layout)
    layer = Layer()
    for number in range(megabytes):
        layer.add(f"ballast-{number}", content=os.urandom(MB))
    add_layer(layout, layer.end())
    return layout


async def create(tools, runtime):
    began = time.monotonic()
    made = await tools.call("create_environment", language=runtime)
    return made["environment_id"], time.monotonic() - began


async def environments(server):
    """Measures warm creates of the small and the large image alternately, and the disk space of many of the large one.

    Returns the seconds of the creates, and the disk space of the machines before and after each of them has written.
    """
    times = {"shell": [], "python": []}
    async with server.client() as tools:
        for turn in range(CREATES + 1):
            # Alternate the image that comes first.
            for runtime, found in sorted(times.items(), reverse=turn % 2 == 0):
                one, took = await create(tools, runtime)
                await tools.call("destroy_environment", environment_id=one)
                # The first create of an image merges the image, so it does not count.
                if turn > 0:
                    found.append(took)
        made = [(await create(tools, "python"))[0] for _ in range(MANY)]
        machines = server.data / "machines"
        fresh = blocks(machines)
        for one in made:
            code = f"head -c {WRITTEN_MIB << 20} /dev/urandom >written; sync"
            ran = await tools.call("execute", environment_id=one, code=code, language="shell", timeout_seconds=120)
            assert ran["exit_code"] == 0, ran
        return times, fresh, blocks(machines)


def environment_tables(folder):
    small, large = image_of(SMALL_MB, folder), image_of(LARGE_MB, folder)
    cache = folder / "environments-cache"
    server = Server(
        IMAGE_SHELL=f"oci:{small}",
        IMAGE_PYTHON=f"oci:{large}",
        IMAGE_CACHE_DIR=str(cache),
        DEFAULT_MEMORY_MB=str(MEMORY_MIB),
        MAX_ENVIRONMENTS=str(MANY),
    )
    try:
        server.start()
        times, fresh, written = asyncio.run(environments(server))
    finally:
        server.stop()
        server.remove()
    of_small, of_large = statistics.median(times["shell"]), statistics.median(times["python"])
    merged = max(blocks(path) for path in cache.glob("merged-*/*.erofs"))
    return f"""| warm `create_environment` with an image of | median | least | most |
| --- | ---: | ---: | ---: |
| {SMALL_MB} MB | {of_small:.2f} s | {min(times["shell"]):.2f} s | {max(times["shell"]):.2f} s |
| {LARGE_MB} MB | {of_large:.2f} s | {min(times["python"]):.2f} s | {max(times["python"]):.2f} s |
| the large image compared with the small one | {of_large / of_small:.2f} × | | |

| disk space of {MANY} environments with the {LARGE_MB} MB image | together | each |
| --- | ---: | ---: |
| the file of the image, which all environments share | {merged / MB:.0f} MB | |
| the machines' own files, fresh | {fresh / MB:.1f} MB | {fresh / MB / MANY:.2f} MB |
| the machines' own files, once each guest has written {WRITTEN_MIB} MiB | {written / MB:.0f} MB | {written / MB / MANY:.1f} MB |
| image and fresh machines together, compared with {MANY} copies of the image | {100 * (merged + fresh) / (MANY * merged):.0f} % | |"""


def main():
    assert os.geteuid() == 0, "unpacking images requires root; run this benchmark as root"
    with tempfile.TemporaryDirectory(prefix="waggle-images-") as name:
        folder = pathlib.Path(name)
        speed = speed_table(folder)
        page = f"""# Images

`./taskw bench-images` measures this and writes this page. This run: {processors()}.

## From layers to a disk

The time from an image's layers, in a layout on this disk, to its file system. `waggle image pull` verifies the layers and
merges them into one EROFS file. `umoci unpack` unpacks them into a folder, and `mkfs.erofs` makes a file system of that
folder, without compression, like waggle. Medians of {ROUNDS} rounds, each of which ran all three programs. The times include
the start and the exit of the programs; the speeds refer to the content of the image's files. `umoci unpack` also hashes
every file, to find changes later. The last column contains the sizes of both file systems, waggle's first.

{speed}

## What an image's size costs an environment

The image `foreign` with {SMALL_MB} and with {LARGE_MB} incompressible files of 1 MB each. {CREATES} creates with each image,
alternately. Without a usable KVM, QEMU emulates the machines.

{environment_tables(folder)}
"""
    print(page)
    if not QUICK:
        PAGE.write_text(page)


main()
