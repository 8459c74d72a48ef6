// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @anthropic-ai/claude-code 2.1.332 (with a stand-in for the model)
import { writeFileSync } from "node:fs";
import { home, program, run } from "./lines.mjs";
import { agent } from "./model.mjs";

await run((url, token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  writeFileSync(`${home}/mcp.json`, JSON.stringify({ mcpServers: { waggle: { type: "http", url, headers } } }));
  const args = ["--print", "go", "--mcp-config", "mcp.json", "--strict-mcp-config", "--allowedTools", "mcp__waggle"];
  args.push("--verbose", "--output-format", "stream-json");
  return agent("anthropic", (api, signal) =>
    program("claude", args, signal, {
      ANTHROPIC_BASE_URL: api,
      ANTHROPIC_API_KEY: "x",
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
      // Else the model has to search for the tools first.
      ENABLE_TOOL_SEARCH: "false",
    }),
  );
});
