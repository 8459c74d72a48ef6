// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @ai-sdk/mcp 2.0.99, ai 7.0.173
import { createMCPClient } from "@ai-sdk/mcp";
import { generateText, isStepCount } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { run } from "./lines.mjs";

// A model that calls a tool once.
function model(toolName, args) {
  const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };
  const call = { type: "tool-call", toolCallId: "1", toolName, input: JSON.stringify(args) };
  return new MockLanguageModelV4({
    doGenerate: [
      { content: [call], finishReason: { unified: "tool-calls" }, usage, warnings: [] },
      { content: [{ type: "text", text: "done" }], finishReason: { unified: "stop" }, usage, warnings: [] },
    ],
  });
}

await run(async (url, token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const client = await createMCPClient({ transport: { type: "http", url, headers } });
  const tools = await client.tools();
  return {
    tools: async () => Object.keys(tools),
    call: async (tool, args, abortSignal) => {
      const fake = model(tool, args);
      // Without `stopWhen`, the run ends before the model sees the tool's result.
      await generateText({ model: fake, tools, prompt: "go", stopWhen: isStepCount(20), abortSignal });
      const { output } = fake.doGenerateCalls[1].prompt.at(-1).content[0];
      if (output.type !== "content") return { shown: [output.value].flat().map(String).join("\n") };
      return {
        shown: output.value.map((part) => part.text ?? "").join("\n"),
        picture: output.value.some((part) => part.mediaType?.startsWith("image/")),
      };
    },
  };
});
