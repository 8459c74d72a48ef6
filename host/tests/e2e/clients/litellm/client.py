# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""litellm 1.110.2 mcp_client, mcp 2.3.0"""

import json
import os
import sys

# Else it fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"

import mcp  # noqa: E402
from litellm import mcp_client  # noqa: E402
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    async with (
        create_mcp_http_client({"Authorization": f"Bearer {token}"} if token else None) as http,
        streamable_http_client(sys.argv[1], http_client=http) as (reader, writer),
        mcp.ClientSession(reader, writer) as session,
    ):
        await session.initialize()

        async def tools():
            found = await mcp_client.load_mcp_tools(session, format="openai")
            return [tool["function"]["name"] for tool in found]

        async def call(tool, arguments):
            asked = {"id": "1", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
            result = await mcp_client.call_openai_tool(session, openai_tool=asked)
            # The framework hands out the result; its documentation passes the text on.
            shown = "\n".join(block.text for block in result.content if block.type == "text")
            return {"shown": shown, "picture": any(block.type == "image" for block in result.content), "error": None}

        await serve(tools, call)


run(main())
