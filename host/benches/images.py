# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Measures images: how fast layers become a disk, and what the size of an image costs an environment.

`./taskw bench-images` makes what this needs, starts it, and has the page docs/benchmarks/images.md written; with --quick it
looks less often, and only prints.
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
# Of each of the many environments, in MiB.
WRITTEN_MIB = 8
MEMORY_MIB = 192
# What is merged: of the project's images those that many small files make, and that a few large ones do.
IMAGES = ["python", "node"]
SMALL_MB, LARGE_MB = 50, 500
MB = 1_000_000
PAGE = ROOT / "docs/benchmarks/images.md"


def seconds(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def blocks(path):
    """Bytes of the disk that a file or a folder takes."""
    return int(subprocess.run(["du", "-s", "--block-size=1", path], check=True, capture_output=True).stdout.split()[0])


def speeds(name, folder):
    """Medians of the seconds that each way takes from an image's layers to a disk, and the bytes of content."""
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
            # What an earlier step has left to be written must not slow the next one down.
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
        "| image | content | `waggle image pull` | `umoci unpack` | `mkfs.erofs` of that | both | waggle against both | file |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in IMAGES:
        took, content, files, sizes = speeds(name, folder)
        both = took["unpack"] + took["mkfs"]

        def told(time_s):
            return f"{content / MB / time_s:.0f} MB/s ({time_s:.2f} s)"

        cells = [name, f"{content / MB:.0f} MB, {files:,} entries", *(told(took[step]) for step in ("merge", "unpack", "mkfs"))]
        cells += [told(both), f"{both / took['merge']:.1f} ×", f"{sizes['ours'] / MB:.0f} MB, {sizes['theirs'] / MB:.0f} MB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image_of(megabytes, folder):
    """The image `foreign` with so many files of a megabyte each on top."""
    layout = folder / f"image-{megabytes}"
    shutil.copytree(ROOT / "target/images/foreign", layout)
    layer = Layer()
    for number in range(megabytes):
        layer.add(f"ballast-{number}", content=os.urandom(MB))
    add_layer(layout, layer.end())
    return layout


async def create(tools, runtime):
    began = time.monotonic()
    made = await tools.call("create_environment", runtime=runtime)
    return made["environment_id"], time.monotonic() - began


async def environments(server):
    """Seconds of a warm create of the small image and of the large one, in turn; and what ten of the large one take."""
    times = {"shell": [], "python": []}
    async with server.client() as tools:
        for turn in range(CREATES + 1):
            # Now the one is first, now the other.
            for runtime, found in sorted(times.items(), reverse=turn % 2 == 0):
                one, took = await create(tools, runtime)
                await tools.call("destroy_environment", environment_id=one)
                # The first one merges the image.
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
    return f"""| warm `create_environment` of an image of | median | least | most |
| --- | ---: | ---: | ---: |
| {SMALL_MB} MB | {of_small:.2f} s | {min(times["shell"]):.2f} s | {max(times["shell"]):.2f} s |
| {LARGE_MB} MB | {of_large:.2f} s | {min(times["python"]):.2f} s | {max(times["python"]):.2f} s |
| the second against the first | {of_large / of_small:.2f} × | | |

| the disk that {MANY} environments of the {LARGE_MB} MB image take | together | each |
| --- | ---: | ---: |
| the image's file, which they share | {merged / MB:.0f} MB | |
| the machines' own files, fresh | {fresh / MB:.1f} MB | {fresh / MB / MANY:.2f} MB |
| the same, once each guest has written {WRITTEN_MIB} MiB | {written / MB:.0f} MB | {written / MB / MANY:.1f} MB |
| all of it against {MANY} copies of the image | {100 * (merged + fresh) / (MANY * merged):.0f} % | |"""


def main():
    assert os.geteuid() == 0, "to unpack images takes root: run this as root"
    with tempfile.TemporaryDirectory(prefix="waggle-images-") as name:
        folder = pathlib.Path(name)
        speed = speed_table(folder)
        page = f"""# Images

`./taskw bench-images` measures this and writes this page. This run: {processors()}.

## From layers to a disk

The time from an image's layers, in a layout on this disk, to its file system: by `waggle image pull`, which verifies the blobs
and merges them into one EROFS file; by `umoci unpack`, which unpacks them into a folder; and by `mkfs.erofs` from that
folder, uncompressed as ours is. Medians of {ROUNDS} rounds, each of which took every way in turn, programs started and
ended; speeds are of the content of the image's files. `umoci unpack` also hashes every file, to find changes later. The last
column has the two files' sizes, ours first.

{speed}

## What an image's size costs an environment

The image `foreign` with {SMALL_MB} and {LARGE_MB} files of a megabyte each, which no compression makes smaller. {CREATES} creates of each,
in turn; the machines are emulated by QEMU where there is no KVM that boots guests.

{environment_tables(folder)}
"""
    print(page)
    if not QUICK:
        PAGE.write_text(page)


main()
