# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""google-adk 2.13.0"""

import json
import os
import sys

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools.mcp_tool.mcp_session_manager import StreamableHTTPConnectionParams
from google.adk.tools.mcp_tool.mcp_toolset import McpToolset
from google.genai.types import Content, FunctionCall, Part

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(BaseLlm):
    """Calls one tool and keeps what the model gets in return."""

    tool: str
    arguments: dict
    got: list = []

    async def generate_content_async(self, llm_request, stream=False):
        parts = llm_request.contents[-1].parts
        if any(part.function_response for part in parts):
            self.got = parts
            yield LlmResponse(content=Content(role="model", parts=[Part(text="done")]))
        else:
            asked = Part(function_call=FunctionCall(name=self.tool, args=self.arguments))
            yield LlmResponse(content=Content(role="model", parts=[asked]))


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    # By default, calls end after 300 s; `timeout` is for connections, by default 5 s.
    server = McpToolset(
        connection_params=StreamableHTTPConnectionParams(
            url=sys.argv[1], headers=headers, timeout=30, sse_read_timeout=330
        )
    )

    async def tools():
        return [tool.name for tool in await server.get_tools()]

    async def call(tool, arguments):
        model = OneCall(model="model", tool=tool, arguments=arguments)
        runner = InMemoryRunner(agent=LlmAgent(name="agent", model=model, tools=[server]), app_name="app")
        session = await runner.session_service.create_session(app_name="app", user_id="user")
        message = Content(role="user", parts=[Part(text="go")])
        async for _ in runner.run_async(user_id="user", session_id=session.id, new_message=message):
            pass
        answers = [part.function_response for part in model.got if part.function_response]
        shown = "\n".join(json.dumps(answer.response, ensure_ascii=False) for answer in answers)
        picture = any(answer.parts for answer in answers) or any(part.inline_data for part in model.got)
        return {"shown": shown, "picture": picture, "error": None}

    await serve(tools, call)


run(main())
