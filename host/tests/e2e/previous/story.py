# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The first steps of a user, with the previous generation of the official Python client. Arguments: a server's URL, or
the command that starts one."""

import asyncio
import datetime
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

# The timeout of a call, for software emulation on a busy machine.
CALL = datetime.timedelta(seconds=120)


async def tell(session):
    await session.initialize()

    async def call(tool, **arguments):
        result = await session.call_tool(tool, arguments, read_timeout_seconds=CALL)
        assert not result.isError, result
        return result

    assert len((await session.list_tools()).tools) == 8
    made = (await call("create_environment", language="python")).structuredContent
    one = made["environment_id"]
    await call("write_file", environment_id=one, path="bees", content="A,12\nB,30\n")
    code = "print(sum(int(line.split(',')[1]) for line in open('bees')))"
    assert (await call("execute", environment_id=one, code=code)).structuredContent["stdout"] == "42\n"
    read = await call("read_file", environment_id=one, path="bees")
    assert read.content[0].text == "A,12\nB,30\n"
    refused = await session.call_tool("read_file", {"environment_id": one, "path": "nothing"})
    assert refused.isError and refused.meta["waggle/error"]["code"] == "not_found"
    await call("destroy_environment", environment_id=one)
    assert (await call("list_environments")).structuredContent["count"] == 0


async def main(target, *rest):
    if target.startswith("http"):
        async with streamablehttp_client(target) as (reader, writer, _), ClientSession(reader, writer) as session:
            await tell(session)
    else:
        server = StdioServerParameters(command=target, args=list(rest), env=dict(os.environ))
        async with stdio_client(server) as (reader, writer), ClientSession(reader, writer) as session:
            await tell(session)
    print("the end")


asyncio.run(main(*sys.argv[1:]))
