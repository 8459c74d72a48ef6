# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""semantic-kernel 1.45.0, mcp 1.30.0"""

import json
import os
import sys

from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior, PromptExecutionSettings
from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
from semantic_kernel.connectors.mcp import MCPStreamableHttpPlugin
from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class OneCall(ChatCompletionClientBase):
    """Calls one tool and keeps what the model gets in return."""

    SUPPORTS_FUNCTION_CALLING = True
    tool: str
    arguments: dict
    got: str | None = None

    async def _inner_get_chat_message_contents(self, chat_history, settings):
        if chat_history.messages[-1].role == "tool":
            # As the connectors send it.
            self.got = chat_history.messages[-1].to_dict()["content"]
            return [ChatMessageContent(role="assistant", content="done")]
        asked = FunctionCallContent(
            id="1", plugin_name="waggle", function_name=self.tool, arguments=json.dumps(self.arguments)
        )
        return [ChatMessageContent(role="assistant", items=[asked])]


async def main():
    token = os.environ.get("WAGGLE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    kernel = Kernel()
    # By default, calls end after 300 s.
    async with MCPStreamableHttpPlugin(
        "waggle", sys.argv[1], headers=headers, sse_read_timeout=330, load_prompts=False
    ) as server:
        plugin = kernel.add_plugin(server)

        async def tools():
            return list(plugin.functions)

        async def call(tool, arguments):
            model = OneCall(ai_model_id="model", tool=tool, arguments=arguments)
            settings = PromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())
            history = ChatHistory()
            history.add_user_message("go")
            await model.get_chat_message_contents(history, settings, kernel=kernel)
            # The result is one text, the representation of Python objects.
            return {"shown": model.got, "picture": False, "error": None}

        await serve(tools, call)


run(main())
