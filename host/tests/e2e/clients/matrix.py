# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Runs clients against a server with real machines, and writes the table of docs/clients.md.

    matrix.py [--write] [CLIENT...]

Prints one row per client. A cross without a star is waggle's fault and makes the run fail; a cross with a star also appears
with the official reference server. With --write, and all clients, the table in docs/clients.md is replaced.
"""

import asyncio
import concurrent.futures
import os
import pathlib
import queue
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import checks  # noqa: E402
import reference  # noqa: E402
from driver import FOLDER, ROOT, Died, Driver  # noqa: E402
from layouts import Layer, write_layout  # noqa: E402
from server import Server  # noqa: E402

PAGE = ROOT / "docs/clients.md"
BEGIN, END = "<!-- the table of clients: ./taskw e2e-clients -->", "<!-- end of the table -->"
OK, CROSS, STAR, NONE = "✓", "✗", "✗*", "–"
TOKEN = "the-token-of-the-clients"
LIST = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null"


class Served(Server):
    """A server whose node environments cannot start."""

    def __init__(self, **settings):
        super().__init__(MAX_ENVIRONMENTS="40", **settings)
        layout = write_layout(self.folder / "damaged", [Layer().end()])
        for blob in (layout / "blobs/sha256").iterdir():
            blob.write_bytes(b"damaged")
        self.settings["IMAGE_NODE"] = f"oci:{layout}"

    def restart(self):
        self.stop()
        self.start()

    def processes_in(self, environment):
        """The command lines of an environment's processes."""

        async def listed():
            async with self.client() as tools:
                ran = await tools.call("execute", environment_id=environment, language="shell", code=LIST)
                return ran["stdout"].replace(LIST, "")

        return asyncio.run(listed())


def guarded_server():
    """A server that requires the token of the clients."""
    server = Served()
    tokens = server.folder / "tokens"
    tokens.write_text(f"clients {TOKEN}\n")
    tokens.chmod(0o600)
    server.settings["AUTH_TOKENS_FILE"] = str(tokens)
    return server


def run(client, server, guarded=None, only=None):
    """The outcome of each check: None for success, a text for a failure, or a star and a text for the client's failure."""
    outcomes = {}
    names = [name for name in checks.CHECKS if only is None or name in only]
    driver = Driver(client, server.url)
    story = checks.Story(driver, server)
    try:
        failed = driver.answer(120).get("failed")
        for name in names:
            try:
                outcomes[name] = failed or checks.CHECKS[name](story)
            except Died as died:
                outcomes[name] = str(died)
                failed = f"the client had ended: {died}"
            if story.environment is None and name == "create":
                failed = "no environment"
    except Died as died:
        outcomes = dict.fromkeys(names, str(died))
    finally:
        driver.stop()
    if only is None or "wrong token" in only:
        outcomes["wrong token"] = reference.wrong_token(client, guarded.url)
    return outcomes


def with_stars(client, outcomes):
    """Marks the failures that the client has with the reference server, too."""
    if all(outcome is None for outcome in outcomes.values()):
        return outcomes
    everything = reference.Everything().start()
    try:
        return {
            name: f"*{outcome}" if outcome is not None and reference.fails(name, client, everything) else outcome
            for name, outcome in outcomes.items()
        }
    finally:
        everything.stop()


def mark(outcome):
    if outcome is None:
        return OK
    return STAR if outcome.startswith("*") else CROSS


def version(client):
    """The name and the pinned version of a client, as the first line of its program tells them."""
    lines = next(FOLDER.glob(f"{client}/client.*")).read_text().splitlines()
    return lines[2].strip('"/# .')


def rows_of(clients):
    """The names of these clients with their outcomes, from servers of their own."""
    server, guarded = Served().start(), guarded_server().start()
    try:
        while True:
            try:
                client = clients.get_nowait()
            except queue.Empty:
                return
            outcomes = with_stars(client, run(client, server, guarded))
            yield client, outcomes
    finally:
        for one in (server, guarded):
            one.stop()
            one.remove()


def row(client, outcomes):
    return f"| {version(client)} | {' | '.join(mark(outcome) for outcome in outcomes.values())} |"


def main(arguments):
    os.environ["PATH"] = f"{ROOT}/target/tools/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    wanted = [name for name in arguments if not name.startswith("-")]
    everyone = sorted(path.parent.name for path in FOLDER.glob("*/client.*"))
    clients, found = queue.SimpleQueue(), {}
    for client in wanted or everyone:
        clients.put(client)

    def work():
        for client, outcomes in rows_of(clients):
            found[client] = outcomes
            failed = [f"  {client}, {name}: {outcome}" for name, outcome in outcomes.items() if outcome is not None]
            print("\n".join([row(client, outcomes), *failed]), flush=True)

    # Machines mostly wait, so two clients at a time take little more than half the time.
    with concurrent.futures.ThreadPoolExecutor(min(2, clients.qsize())) as workers:
        for worker in [workers.submit(work) for _ in range(2)]:
            worker.result()
    heading = ["client", *checks.CHECKS, "wrong token"]
    rows = [row(client, found[client]) for client in sorted(found)]
    table = [f"| {' | '.join(heading)} |", f"| --- |{' :-: |' * (len(heading) - 1)}", *rows]
    if "--write" in arguments and not wanted:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(table) + f"\n\n{END}{rest.split(END)[1]}")
    ours = [f"{client}, {name}" for client in found for name, outcome in found[client].items() if mark(outcome) == CROSS]
    print(f"{len(rows)} clients, {len(ours)} crosses of waggle's own: {ours}")
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
