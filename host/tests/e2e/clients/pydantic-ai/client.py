# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""pydantic-ai-slim 2.68.0"""

import os
import sys

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import BinaryContent, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

sys.path.append(os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    toolset = MCPToolset(
        sys.argv[1],
        headers={"Authorization": f"Bearer {token}"} if token else None,
        # The longest time of a call; by default 300 s.
        read_timeout=330,
        # By default, an error is a reason to retry, and a second error of the same tool in a row ends the run.
        tool_error_behavior="failed",
    )
    async with toolset:

        async def tools():
            known = []

            def model(messages, about):
                known.extend(tool.name for tool in about.function_tools)
                return ModelResponse([TextPart("done")])

            await Agent(FunctionModel(model), toolsets=[toolset]).run("Which tools are there?")
            return known

        async def call(tool, arguments):
            given = []

            def model(messages, about):
                given[:] = [
                    part
                    for message in messages
                    for part in message.parts
                    if part.part_kind in ("tool-return", "retry-prompt")
                ]
                return ModelResponse([TextPart("done") if given else ToolCallPart(tool, arguments)])

            await Agent(FunctionModel(model), toolsets=[toolset]).run("Make the call.")
            [part] = given
            files = part.files if part.part_kind == "tool-return" else []
            return {
                "shown": part.model_response_str() if part.part_kind == "tool-return" else part.model_response(),
                "picture": any(isinstance(file, BinaryContent) and file.is_image for file in files),
                "error": None,
            }

        await serve(tools, call)


run(main())
