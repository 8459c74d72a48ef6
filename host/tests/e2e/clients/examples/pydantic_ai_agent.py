# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import sys

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset

waggle = MCPToolset(
    os.environ.get("WAGGLE_URL", "http://127.0.0.1:8080/mcp"),
    headers={"Authorization": f"Bearer {os.environ['WAGGLE_TOKEN']}"},
    # The longest time of a call, in seconds.
    read_timeout=330,
    # The model is told about each error. By default, the second error of a tool in a row ends the run.
    tool_error_behavior="failed",
    include_instructions=True,
)


async def main(model, question):
    answer = await Agent(model, toolsets=[waggle]).run(question)
    print(answer.output)


# For example: python pydantic_ai_agent.py openai:gpt-5 "What is the sum of the first 1000 primes?"
asyncio.run(main(sys.argv[1], sys.argv[2]))
