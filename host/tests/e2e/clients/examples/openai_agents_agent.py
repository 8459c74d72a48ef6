# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import sys

from agents import Agent, Runner
from agents.mcp import MCPServerStreamableHttp

WAGGLE = {
    "url": os.environ.get("WAGGLE_URL", "http://127.0.0.1:8080/mcp"),
    "headers": {"Authorization": f"Bearer {os.environ['WAGGLE_TOKEN']}"},
}


async def main(model, question):
    # The longest time of a call, in seconds. By default, calls end after 5 s.
    async with MCPServerStreamableHttp(WAGGLE, client_session_timeout_seconds=330) as waggle:
        agent = Agent(name="assistant", model=model, mcp_servers=[waggle])
        answer = await Runner.run(agent, question)
        print(answer.final_output)


# For example: python openai_agents_agent.py gpt-5 "What is the sum of the first 1000 primes?"
asyncio.run(main(sys.argv[1], sys.argv[2]))
