# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""langchain 1.5.2 with langchain.mcp (beta)"""

import os
import sys

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from langchain.mcp import MCPAdapter

sys.path.append(os.path.join(os.path.dirname(__file__), ".."))
from langchain_agent import answer  # noqa: E402
from lines import run  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    # By default, a call has no time limit; Client(timeout=...) sets one.
    async with MCPAdapter(Client(StreamableHttpTransport(sys.argv[1], headers))) as adapter:
        await answer(adapter.list_tools)


run(main())
