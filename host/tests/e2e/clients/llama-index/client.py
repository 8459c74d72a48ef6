# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""llama-index-tools-mcp 0.6.0, llama-index-core 0.14.25"""

import os
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage, ImageBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    # By default, calls end after 30 s, or with progress after 300 s.
    client = BasicMCPClient(sys.argv[1], headers=headers, timeout=330, sse_read_timeout=330)
    found = await McpToolSpec(client).to_tool_list_async()

    async def tools():
        return [tool.metadata.get_name() for tool in found]

    async def call(tool, arguments):
        got = []

        def answer(messages, **_):
            if messages[-1].role == "tool":
                got.append(messages[-1])
                return ChatMessage(role="assistant", content="done")
            asked = ToolCallBlock(tool_call_id="1", tool_name=tool, tool_kwargs=arguments)
            return ChatMessage(role="assistant", blocks=[asked])

        model = MockFunctionCallingLLM(response_generator=answer)
        running = FunctionAgent(tools=found, llm=model, timeout=None).run("go")
        try:
            await running
        finally:
            await running.cancel_run()
        picture = any(isinstance(block, ImageBlock) for block in got[0].blocks)
        return {"shown": got[0].content, "picture": picture, "error": None}

    await serve(tools, call)


run(main())
