# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""crewai-tools 1.15.30, crewai 1.15.30, mcp 1.30.0"""

import json
import os
import sys

os.environ["CREWAI_DISABLE_TELEMETRY"] = os.environ["OTEL_SDK_DISABLED"] = "true"

from crewai import Agent, BaseLLM  # noqa: E402
from crewai_tools import MCPServerAdapter  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(BaseLLM):
    """Calls one tool and keeps what the model gets in return."""

    tool: str
    arguments: dict
    got: str | None = None

    def call(self, messages, *_, **__):
        # It has the tool's result appended to the model's own answer.
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if answers:
            self.got = answers[-1].partition("Observation:")[2]
            return "Thought: I now know the answer\nFinal Answer: done"
        return f"Thought: call it\nAction: {self.tool}\nAction Input: {json.dumps(self.arguments)}"

    def get_context_window_size(self):
        return 200_000

    async def acall(self, messages, *_, **__):
        return self.call(messages)


async def main():
    # It draws a panel for each step, which would get between the answers.
    sys.stdout = open(os.devnull, "w")
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    server = {"url": sys.argv[1], "transport": "streamable-http", "headers": headers}
    with MCPServerAdapter(server) as found:

        async def tools():
            return [tool.name for tool in found]

        async def call(tool, arguments):
            model = OneCall(model="model", tool=tool, arguments=arguments)
            agent = Agent(role="agent", goal="call tools", backstory="none", llm=model, tools=list(found), max_iter=3)
            await agent.kickoff_async("go")
            # A tool's result is one text for the model; a picture is its representation in Python.
            return {"shown": model.got, "picture": False, "error": None}

        await serve(tools, call)


run(main())
