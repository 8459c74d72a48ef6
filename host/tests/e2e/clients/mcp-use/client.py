# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""mcp-use 1.7.1 MCPAgent, langchain 1.5.2, mcp 1.30.0"""

import os
import sys

os.environ["MCP_USE_ANONYMIZED_TELEMETRY"] = "false"

from langchain_core.language_models import BaseChatModel  # noqa: E402
from langchain_core.messages import AIMessage  # noqa: E402
from langchain_core.outputs import ChatGeneration, ChatResult  # noqa: E402
from mcp_use import MCPAgent, MCPClient  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(BaseChatModel):
    """Calls one tool and keeps what the model gets in return."""

    tool: str
    arguments: dict
    got: list = []

    @property
    def _llm_type(self):
        return "one call"

    def bind_tools(self, tools, **_):
        return self

    def _generate(self, messages, *_, **__):
        if messages[-1].type == "tool":
            self.got = messages[-1].content_blocks
            message = AIMessage("done")
        else:
            message = AIMessage("", tool_calls=[{"name": self.tool, "args": self.arguments, "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=message)])


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    server = {"url": sys.argv[1], "headers": {"Authorization": f"Bearer {token}"} if token else {}}
    client = MCPClient.from_dict({"mcpServers": {"waggle": server}})
    session = await client.create_session("waggle")

    async def tools():
        return [tool.name for tool in await session.list_tools()]

    async def call(tool, arguments):
        model = OneCall(tool=tool, arguments=arguments)
        await MCPAgent(llm=model, client=client, memory_enabled=False).run("go")
        shown = "\n".join(part["text"] for part in model.got if part["type"] == "text")
        return {"shown": shown, "picture": any(part["type"] == "image" for part in model.got), "error": None}

    await serve(tools, call)


run(main())
