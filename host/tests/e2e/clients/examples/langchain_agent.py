# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import sys

from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient

WAGGLE = {
    "transport": "streamable_http",
    "url": os.environ.get("WAGGLE_URL", "http://127.0.0.1:8080/mcp"),
    "headers": {"Authorization": f"Bearer {os.environ['WAGGLE_TOKEN']}"},
}


async def main(model, question):
    client = MultiServerMCPClient({"waggle": WAGGLE})
    agent = create_agent(model, await client.get_tools())
    answer = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})
    print(answer["messages"][-1].text)


# For example: python langchain_agent.py openai:gpt-5 "What is the sum of the first 1000 primes?"
asyncio.run(main(sys.argv[1], sys.argv[2]))
