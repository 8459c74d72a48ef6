# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""mcp 2.3.0 (Python)"""

import os
import sys

import mcp
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run  # noqa: E402
from session import answer  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    # By default, the server must send something at least every 5 minutes. It does so during calls with a progress
    # callback. A call without one is answered at its end, so its limit is the read timeout of `http`.
    async with create_mcp_http_client({"Authorization": f"Bearer {token}"} if token else None) as http:
        async with mcp.Client(streamable_http_client(sys.argv[1], http_client=http)) as client:
            await answer(client)


run(main())
