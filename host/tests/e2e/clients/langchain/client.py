# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""langchain-mcp-adapters 0.3.2, langchain 1.5.2"""

import os
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient

sys.path.append(os.path.join(os.path.dirname(__file__), ".."))
from langchain_agent import answer  # noqa: E402
from lines import run  # noqa: E402


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    # By default, each call has its own session and may take any time as long as something arrives every 5 minutes.
    connection = {"transport": "streamable_http", "url": sys.argv[1]}
    if token:
        connection["headers"] = {"Authorization": f"Bearer {token}"}
    await answer(MultiServerMCPClient({"waggle": connection}).get_tools)


run(main())
