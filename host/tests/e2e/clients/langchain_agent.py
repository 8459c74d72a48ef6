# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Answers the lines with an agent of LangChain, whose model makes the wanted call and notes what it gets in return."""

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from lines import serve


class Model(BaseChatModel):
    """Makes one tool call, and ends with its result."""

    wanted: dict = {}
    known: list = []
    given: list = []

    @property
    def _llm_type(self):
        return "fake"

    def bind_tools(self, tools, **options):
        # As the models of most providers do.
        self.known[:] = [convert_to_openai_tool(tool)["function"]["name"] for tool in tools]
        return self

    def _generate(self, messages, stop=None, run_manager=None, **options):
        self.given[:] = [message for message in messages if isinstance(message, ToolMessage)]
        calls = [] if self.given or not self.wanted else [{"id": "1", **self.wanted}]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=calls))])


async def answer(list_tools):
    """`list_tools` makes LangChain's tools."""
    available = await list_tools()

    async def tools():
        model = Model()
        await create_agent(model, available).ainvoke({"messages": [HumanMessage("Which tools are there?")]})
        return model.known

    async def call(tool, arguments):
        model = Model(wanted={"name": tool, "args": arguments})
        await create_agent(model, available).ainvoke({"messages": [HumanMessage("Make the call.")]})
        [message] = model.given
        return {
            "shown": message.text,
            "picture": any(block["type"] == "image" for block in message.content_blocks),
            "error": None,
        }

    await serve(tools, call)
