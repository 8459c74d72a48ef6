# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""fastmcp 4.2.3 client"""

import os
import sys

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    async with Client(
        StreamableHttpTransport(sys.argv[1], headers={"Authorization": f"Bearer {token}"} if token else None)
    ) as client:

        async def tools():
            return [tool.name for tool in await client.list_tools()]

        async def call(tool, arguments):
            reports = []

            async def report(progress, total, message):
                reports.append(message)

            try:
                content = (await client.call_tool(tool, arguments, progress_handler=report)).content
            except ToolError as error:
                # Its way to tell that the tool failed, with the result's text.
                return {"shown": str(error), "picture": False, "error": None, "progress": len(reports)}
            shown = "\n".join(block.text for block in content if block.type == "text")
            picture = any(block.type == "image" for block in content)
            return {"shown": shown, "picture": picture, "error": None, "progress": len(reports)}

        await serve(tools, call)


run(main())
