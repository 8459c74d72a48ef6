# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""autogen-ext 0.7.5, McpWorkbench, mcp 1.30.0"""

import asyncio
import json
import os
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import CreateResult, ModelFamily, ModelInfo, RequestUsage
from autogen_ext.models.replay import ReplayChatCompletionClient
from autogen_ext.tools.mcp import McpWorkbench, StreamableHttpServerParams

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402

ABILITIES = ModelInfo(
    vision=True, function_calling=True, json_output=False, family=ModelFamily.UNKNOWN, structured_output=False
)


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    # By default, calls end after 300 s.
    params = StreamableHttpServerParams(url=sys.argv[1], headers=headers, sse_read_timeout=330)
    async with McpWorkbench(params) as workbench:

        async def tools():
            return [tool["name"] for tool in await workbench.list_tools()]

        async def call(tool, arguments):
            asked = CreateResult(
                finish_reason="function_calls",
                content=[FunctionCall(id="1", name=tool, arguments=json.dumps(arguments))],
                usage=RequestUsage(prompt_tokens=0, completion_tokens=0),
                cached=False,
            )
            model = ReplayChatCompletionClient([asked, "done"], ABILITIES)
            agent = AssistantAgent("agent", model, workbench=workbench, reflect_on_tool_use=True)
            token = CancellationToken()
            try:
                await agent.run(task="go", cancellation_token=token)
            except asyncio.CancelledError:
                token.cancel()
                raise
            # A tool's result is one text for the model; pictures are base64 in it.
            return {"shown": model.create_calls[-1]["messages"][-1].content[0].content, "picture": False, "error": None}

        await serve(tools, call)


run(main())
