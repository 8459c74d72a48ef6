# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Answers the lines with a session of the official Python client. This part is the same from version 1.22 to 2.3."""

from lines import serve


async def answer(session):
    async def tools():
        return [tool.name for tool in (await session.list_tools()).tools]

    async def call(tool, arguments):
        reports = []

        async def report(progress, total, message):
            reports.append(message)

        result = await session.call_tool(tool, arguments, progress_callback=report)
        # The text blocks, as most frameworks pass them on.
        shown = "\n".join(block.text for block in result.content if block.type == "text")
        picture = any(block.type == "image" for block in result.content)
        return {"shown": shown, "picture": picture, "error": None, "progress": len(reports)}

    await serve(tools, call)
