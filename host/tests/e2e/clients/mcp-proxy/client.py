# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""mcp-proxy 0.13.0 HTTP to stdio, mcp 1.30.0"""

import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run  # noqa: E402
from session import answer  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = ["--headers", "Authorization", f"Bearer {token}"] if token else []
    # Its default transport is SSE, which waggle does not have.
    proxy = StdioServerParameters(
        command=f"{sys.prefix}/bin/mcp-proxy", args=["--transport", "streamablehttp", *headers, sys.argv[1]]
    )
    async with stdio_client(proxy) as (reader, writer), ClientSession(reader, writer) as session:
        await session.initialize()
        await answer(session)


run(main())
