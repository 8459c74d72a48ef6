# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Long listings, and names that are not UTF-8, in real machines."""

import base64

ENTRIES = 25_000

# Names in a folder and, if they begin with 2, in a folder below. Links are created faster than files.
CREATE = f"""
mkdir -p many/below && cd many && touch first
perl -e 'for (1..{ENTRIES}) {{ $name = sprintf "%05d", $_; link "first", /^2....$/ ? "below/$name" : $name or die }}'
rm first
"""

# Names that are not UTF-8 or look like the text of another name. Each file contains its name in base64.
NAMES = [b"caf\xe8", b"caf\xe9", b"caf\\xE9", b"caf\xc3\xa9", b"a\\b\xff", b"dir\xe9/in\xe8", b"dir\xe9/plain"]


async def pages(tools, one, **arguments):
    """The pages of a listing."""
    page = await tools.call("list_files", environment_id=one, **arguments)
    yield page
    while "next" in page:
        page = await tools.call("list_files", environment_id=one, after=page["next"], **arguments)
        yield page


async def test_a_folder_of_25000_entries_is_listed_in_pages(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        ran = await tools.call("execute", environment_id=one, code=CREATE, timeout_seconds=120)
        assert ran["exit_code"] == 0, ran
        numbers = [f"{number:05}" for number in range(1, ENTRIES + 1)]
        top = [number for number in numbers if number[0] != "2"]
        for recursive, expected in [
            (False, [*top, "below"]),
            (True, [*top, "below", *(f"below/{number}" for number in numbers if number[0] == "2")]),
        ]:
            names = []
            async for page in pages(tools, one, path="many", recursive=recursive):
                assert page["total"] == len(expected) and page["count"] == len(page["files"]), page["total"]
                assert page.get("truncated", False) == ("next" in page) and "total_is_minimum" not in page
                names += [file["name"] for file in page["files"]]
            assert names == expected, len(names)


async def test_a_file_is_read_and_written_by_the_name_in_its_listing(server):
    async with server.client() as tools, tools.environment("shell") as made:
        one = made["environment_id"]
        for name in NAMES:
            encoded = base64.b64encode(name).decode()
            code = f'n=names/$(echo {encoded} | base64 -d); mkdir -p "${{n%/*}}"; printf {encoded} >"$n"'
            ran = await tools.call("execute", environment_id=one, code=code)
            assert ran["exit_code"] == 0, ran
        listed = await tools.call("list_files", environment_id=one, path="names", recursive=True)
        files = {file["name"]: file.get("name_base64") for file in listed["files"] if not file["is_dir"]}
        assert sorted(files) == sorted(
            ["caf\\xE8", "caf\\xE9", "caf\\x5CxE9", "café", "a\\x5Cb\\xFF", "dir\\xE9/in\\xE8", "dir\\xE9/plain"]
        )
        contents = [await tools.text("read_file", environment_id=one, path=f"names/{name}") for name in files]
        assert sorted(contents) == sorted(base64.b64encode(name).decode() for name in NAMES)
        assert all(raw in (None, content) for raw, content in zip(files.values(), contents, strict=True)), files
        for name in files:
            await tools.call("write_file", environment_id=one, path=f"~/names/{name}", content=name)
            assert await tools.text("read_file", environment_id=one, path=f"names/{name}") == name
        again = await tools.call("list_files", environment_id=one, path="names", recursive=True)
        assert [file["name"] for file in again["files"]] == [file["name"] for file in listed["files"]]
        below = await tools.call("list_files", environment_id=one, path="names/dir\\xE9", after="in\\xE8")
        assert [file["name"] for file in below["files"]] == ["plain"]

        # What a folder contains that cannot be read is not counted.
        code = "mkdir -p closed/below && echo x >closed/below/file && chmod 0 closed/below && echo done"
        ran = await tools.call("execute", environment_id=one, code=code)
        assert ran["stdout"] == "done\n", ran
        page = await tools.call("list_files", environment_id=one, path="closed", recursive=True)
        assert (page["total"], page["total_is_minimum"], [file["name"] for file in page["files"]]) == (1, True, ["below"])
        await tools.call("execute", environment_id=one, code="chmod 755 closed/below && rm -r closed")

        # The path of a folder is never written as a file.
        for path in ["out/", "out/.", "names/..", "~/", "/"]:
            refused = await tools.refusal("write_file", environment_id=one, path=path, content="x")
            assert "the path names a folder; must end with the name of a file" in refused, refused
        assert await tools.fault("read_file", environment_id=one, path="names/café/") == "not_a_directory"
        home = await tools.call("list_files", environment_id=one)
        assert [file["name"] for file in home["files"]] == ["names"]
