# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""What every client must be able to do with waggle, as checks of one client against one server.

A check returns None if the client passes, else what was seen instead. What a client or its framework cannot do with any server
is told apart by running the same check against the official reference server (see reference.py).
"""

import base64
import json
import re
import time

from driver import Driver

TOOLS = {
    "create_environment",
    "destroy_environment",
    "list_environments",
    "execute",
    "install_packages",
    "write_file",
    "read_file",
    "list_files",
}
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
# 2 x 2 pixels.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAF0lEQVR4nGP4tJ31gKU2g3bOhv///wMAK9QHF5G/jRwAAAAASUVORK5CYII="
)
# What a client logs if it does not understand a server. With such a log, users believe that the server is broken.
COMPLAINTS = re.compile("Traceback|Session termination failed|Error parsing|SyntaxError")
# More than this of one output would fill a model's context.
SHOWN_CHARS_MAX = 300_000


class Story:
    """One client with one environment."""

    def __init__(self, driver, server):
        self.driver = driver
        self.server = server
        self.environment = None

    def call(self, tool, **arguments):
        return self.driver.call(tool, **arguments)

    def inside(self, tool, **arguments):
        return self.call(tool, environment_id=self.environment, **arguments)


def seen(answer, *wanted):
    """None if the model got all of these texts, else what it got."""
    if answer.get("error"):
        return f"the run ended: {answer['error'][:200]}"
    # Some frameworks give the model their results as JSON, with escapes.
    missing = [text for text in wanted if text not in answer["shown"] and json.dumps(text)[1:-1] not in answer["shown"]]
    return None if not missing else f"no {missing[0]!r} in {answer['shown'][:200]!r}"


def connect(story):
    names = {name.split("__")[-1].split(".")[-1] for name in story.driver.do(do="tools")["tools"]}
    missing = {tool for tool in TOOLS if not any(name.endswith(tool) for name in names)}
    if missing:
        return f"tools are missing: {sorted(missing)}"
    return complaint(story.driver.client, story.server.url, "list_environments")


def complaint(client, url, tool, **arguments):
    """What a client complains about from its start to its end, or None."""
    driver = Driver(client, url)
    try:
        driver.answer(120)
        driver.do(do="tools")
        driver.call(tool, **arguments)
    finally:
        driver.stop()
    found = [line.strip() for line in driver.noise if COMPLAINTS.search(line)]
    return f"in the log: {found[0][:200]}" if found else None


def create(story):
    answer = story.call("create_environment", language="python")
    found = ID.search(answer.get("shown") or "")
    if answer.get("error") or not found:
        return seen(answer, "environment_id")
    story.environment = found.group()
    return None


def execute(story):
    return seen(story.inside("execute", code="print(6 * 7)"), "42")


def text(story):
    return seen(story.inside("write_file", path="text", content="grüße\n"), "written") or seen(
        story.inside("read_file", path="text"), "grüße"
    )


def picture(story):
    story.inside("write_file", path="a.png", content=PNG, encoding="base64")
    answer = story.inside("read_file", path="a.png")
    return None if answer.get("picture") else f"no picture, but {str(answer)[:200]}"


def binary(story):
    content = base64.b64encode(bytes(range(256))).decode()
    story.inside("write_file", path="bytes", content=content, encoding="base64")
    return seen(story.inside("read_file", path="bytes"), "binary file: 256 bytes")


def tool_error(story):
    return seen(story.inside("read_file", path="missing"), "No such file", "list_files")


def timeout_error(story):
    code = "import time; print('step 1', flush=True); time.sleep(60)"
    answer = story.inside("execute", code=code, timeout_seconds=2)
    # In the text and in the structured result.
    return seen(answer, "timeout", "step 1") and seen(answer, "timed_out", "step 1")


def start_error(story):
    return seen(story.call("create_environment", language="node"), "failed to create environment", "Retry")


def large_output(story):
    answer = story.inside("execute", code="print('begin'); print('x\"' * 500_000); print('end')")
    if answer.get("shown") and len(answer["shown"]) > SHOWN_CHARS_MAX:
        return f"{len(answer['shown'])} characters"
    return seen(answer, "begin", "end", "stdout_file")


def long_call(story):
    code = "import time\nfor step in range(20): print('step', step, flush=True); time.sleep(1)"
    return seen(story.inside("execute", code=code, timeout_seconds=120), "step 19")


def cancel(story):
    story.driver.do(
        do="cancel",
        tool="execute",
        arguments={"environment_id": story.environment, "code": "open('begun', 'w'); import time; time.sleep(250)", "timeout_seconds": 290},
        after=5,
    )
    deadline = time.monotonic() + 30
    # The command is a script, so its text is not in the command line.
    while "python3" in (left := story.server.processes_in(story.environment)):
        if time.monotonic() > deadline:
            return f"the command still runs: {left[:200]}"
        time.sleep(1)
    return seen(story.inside("list_files"), "begun")


def restart(story):
    story.server.restart()
    for _ in range(2):
        answer = story.call("list_environments")
        # Errors may have the tool's name in them.
        if not answer.get("error") and re.search(r"environments\W+\[", answer["shown"]):
            return None
    return seen(answer, "environments: [")


# In this order, with the heading of the column.
CHECKS = {
    "connect": connect,
    "create": create,
    "execute": execute,
    "text": text,
    "picture": picture,
    "binary": binary,
    "tool error": tool_error,
    "time-out": timeout_error,
    "failed start": start_error,
    "1 MB output": large_output,
    "20 s call": long_call,
    "cancel": cancel,
    "restart": restart,
}
