# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""anthropic 2.14.0 async_mcp_tool, mcp 2.3.0"""

import json
import os
import sys

import httpx2
import mcp
from anthropic import AsyncAnthropic
from anthropic.lib.tools.mcp import async_mcp_tool
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall:
    """Answers as the API: with one tool call, or with the end after its result, which it keeps."""

    def __init__(self, tool, arguments):
        self.asked = {"type": "tool_use", "id": "1", "name": tool, "input": arguments}
        self.got = None

    def __call__(self, request):
        content = json.loads(request.content)["messages"][-1]["content"]
        # The request to go is a text; a result is a list of blocks.
        done = content != "go"
        if done:
            self.got = content[0]["content"]
        message = {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": "model",
            "content": [{"type": "text", "text": "done"} if done else self.asked],
            "stop_reason": "end_turn" if done else "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        return httpx2.Response(200, json=message)


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    async with (
        create_mcp_http_client({"Authorization": f"Bearer {token}"} if token else None) as http,
        streamable_http_client(sys.argv[1], http_client=http) as (reader, writer),
        mcp.ClientSession(reader, writer) as session,
    ):
        await session.initialize()
        found = [async_mcp_tool(tool, session) for tool in (await session.list_tools()).tools]

        async def tools():
            return [tool.name for tool in found]

        async def call(tool, arguments):
            model = OneCall(tool, arguments)
            api = AsyncAnthropic(api_key="key", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(model)))
            go = {"role": "user", "content": "go"}
            runner = api.beta.messages.tool_runner(model="model", max_tokens=100, tools=found, messages=[go])
            await runner.until_done()
            parts = [{"type": "text", "text": model.got}] if isinstance(model.got, str) else model.got
            shown = "\n".join(part["text"] for part in parts if part["type"] == "text")
            return {"shown": shown, "picture": any(part["type"] == "image" for part in parts), "error": None}

        await serve(tools, call)


run(main())
