# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""smolagents 1.26.0 CodeAgent, mcp 1.30.0"""

import asyncio
import os
import sys

from smolagents import CodeAgent, MCPClient, Model
from smolagents.models import ChatMessage, MessageRole

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(Model):
    """Calls one tool, as code, and keeps what the model gets in return."""

    def __init__(self, tool, arguments):
        super().__init__(model_id="model")
        self.code = f"print({tool}(**{arguments!r}))"
        self.got = None

    def generate(self, messages, **_):
        code = self.code
        if messages[-1].role == MessageRole.TOOL_RESPONSE:
            self.got, code = messages[-1].content, "final_answer('done')"
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"<code>\n{code}\n</code>")


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    server = {"url": sys.argv[1], "transport": "streamable-http", "headers": headers}
    # Its extra `mcp` takes mcp 2, which it cannot import: mcp<2 and websockets are needed.
    with MCPClient(server, structured_output=False) as found:

        async def tools():
            return [tool.name for tool in found]

        async def call(tool, arguments):
            model = OneCall(tool, arguments)
            agent = CodeAgent(found, model, verbosity_level=0)
            try:
                await asyncio.to_thread(agent.run, "go")
            except asyncio.CancelledError:
                agent.interrupt()
                raise
            shown = "\n".join(part["text"] for part in model.got if part["type"] == "text")
            return {"shown": shown, "picture": any(part["type"] == "image" for part in model.got), "error": None}

        await serve(tools, call)


run(main())
