// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// An agent with the AI SDK. Versions: ai 7.0.173, @ai-sdk/mcp 2.0.99.
import { createMCPClient } from "@ai-sdk/mcp";
import { generateText, isStepCount } from "ai";

const token = process.env.WAGGLE_TOKEN;
const waggle = await createMCPClient({
  transport: {
    type: "http",
    url: process.env.WAGGLE_URL ?? "http://127.0.0.1:8080/mcp",
    headers: token ? { Authorization: `Bearer ${token}` } : {},
  },
});
try {
  const { text } = await generateText({
    model: process.env.MODEL ?? "anthropic/claude-sonnet-4.5",
    instructions: waggle.instructions,
    tools: await waggle.tools(),
    // Without it, the agent stops before the model sees the first result.
    stopWhen: isStepCount(20),
    prompt: process.argv[2] ?? "How many primes are there below one million? Count them with Python.",
  });
  console.log(text);
} finally {
  await waggle.close();
}
