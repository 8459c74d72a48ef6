// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// A stand-in for the model of ai-sdk.mjs: `node --import ./ai-sdk-model.mjs ai-sdk.mjs`. It creates an environment,
// executes one command, destroys the environment, and answers with the command's result.
import { MockLanguageModelV4 } from "ai/test";

const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };
const reply = (content, unified) => ({ content: [content], finishReason: { unified }, usage, warnings: [] });
const call = (toolName, args) =>
  reply({ type: "tool-call", toolCallId: toolName, toolName, input: JSON.stringify(args) }, "tool-calls");
const code = "print(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, 1000)))";

const model = new MockLanguageModelV4({
  async doGenerate({ prompt }) {
    const result = (name) => {
      const parts = prompt.filter((message) => message.role === "tool").flatMap((message) => message.content);
      const found = parts.find((part) => part.toolName === name);
      return found && JSON.stringify(found.output).replaceAll("\\", "");
    };
    const created = result("create_environment");
    if (!created) return call("create_environment", { language: "python" });
    const environment_id = created.match(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/)[0];
    if (!result("execute")) return call("execute", { environment_id, code });
    if (!result("destroy_environment")) return call("destroy_environment", { environment_id });
    return reply({ type: "text", text: result("execute") }, "stop");
  },
});
globalThis.AI_SDK_DEFAULT_PROVIDER = { specificationVersion: "v4", languageModel: () => model };
