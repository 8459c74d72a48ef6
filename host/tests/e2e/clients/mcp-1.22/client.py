# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""mcp 1.22.0 (Python)"""

import os
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run  # noqa: E402
from session import answer  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    # By default, a call has no time limit as long as the server sends something at least every 5 minutes.
    async with streamablehttp_client(sys.argv[1], headers) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            await answer(session)


run(main())
