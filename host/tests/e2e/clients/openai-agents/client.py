# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""openai-agents 0.24.0"""

import json
import os
import sys

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(Model):
    """Calls one tool and keeps what the model gets in return."""

    def __init__(self, tool, arguments):
        self.call = ResponseFunctionToolCall(
            type="function_call", call_id="1", name=tool, arguments=json.dumps(arguments)
        )
        self.got = []

    async def get_response(self, system_instructions, input, *_, **__):
        self.got = [item["output"] for item in input if item.get("type") == "function_call_output"]
        text = ResponseOutputText(type="output_text", text="done", annotations=[])
        done = ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[done if self.got else self.call], usage=Usage(), response_id=None)

    async def stream_response(self, *_, **__):
        raise NotImplementedError


async def main():
    set_tracing_disabled(True)
    token = os.environ.get("WAGGLE_TOKEN")
    params = {"url": sys.argv[1], "headers": {"Authorization": f"Bearer {token}"} if token else {}}
    # By default, calls end after 5 s.
    async with MCPServerStreamableHttp(params, client_session_timeout_seconds=330) as server:

        async def tools():
            return [tool.name for tool in await server.list_tools()]

        async def call(tool, arguments):
            model = OneCall(tool, arguments)
            await Runner.run(Agent(name="agent", model=model, mcp_servers=[server]), "go")
            parts = model.got[0]
            parts = [{"type": "input_text", "text": parts}] if isinstance(parts, str) else parts
            shown = "\n".join(part["text"] for part in parts if part["type"] == "input_text")
            return {"shown": shown, "picture": any(part["type"] == "input_image" for part in parts), "error": None}

        await serve(tools, call)


run(main())
