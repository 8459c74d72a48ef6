# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The lines of JSON in which a Python client answers (see driver.py)."""

import asyncio
import json
import sys


def say(**answer):
    # Frameworks may have replaced sys.stdout, and may write to the same output from other threads.
    sys.__stdout__.write(f"\n{json.dumps(answer)}\n")
    sys.__stdout__.flush()


def reason(error):
    """The innermost error of a group, as one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]


async def serve(tools, call):
    """Answers each line with these functions. `call` returns the answer, or raises if the framework ends the run."""
    say(ready=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        if request["do"] == "tools":
            try:
                say(tools=await tools())
            except Exception as error:
                say(tools=[], error=reason(error))
        elif request["do"] == "cancel":
            running = asyncio.ensure_future(call(request["tool"], request["arguments"]))
            await asyncio.sleep(request["after"])
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            say(cancelled=True)
        else:
            try:
                say(**({"progress": 0} | await call(request["tool"], request["arguments"])))
            except BaseException as error:
                say(shown="", picture=False, error=reason(error), progress=0)


def run(main):
    """Runs the client; if it cannot connect, says why."""
    try:
        asyncio.run(main)
    except BaseException as error:
        say(failed=reason(error))
