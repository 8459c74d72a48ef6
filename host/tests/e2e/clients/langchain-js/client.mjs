// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @langchain/mcp-adapters 1.1.4, langchain 1.5.14 (JavaScript)
import { AIMessage } from "@langchain/core/messages";
import { fakeModel } from "@langchain/core/testing";
import { MultiServerMCPClient } from "@langchain/mcp-adapters";
import { createAgent } from "langchain";
import { run, texts } from "./lines.mjs";

await run(async (url, token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const client = new MultiServerMCPClient({
    // The README recommends this for new applications.
    useStandardContentBlocks: true,
    // In ms. Without it, a call may take 60 s.
    defaultToolTimeout: 330_000,
    mcpServers: { waggle: { url, headers } },
  });
  const tools = await client.getTools();
  return {
    tools: async () => tools.map((tool) => tool.name),
    call: async (name, args, signal) => {
      const model = fakeModel().respondWithTools([{ name, args, id: "1" }]).respond(new AIMessage("done"));
      await createAgent({ model, tools }).invoke({ messages: [{ role: "user", content: "go" }] }, { signal });
      const { content } = model.calls[1].messages.at(-1);
      if (typeof content === "string") return { shown: content };
      return { shown: texts(content), picture: content.some((block) => block.type.startsWith("image")) };
    },
  };
});
