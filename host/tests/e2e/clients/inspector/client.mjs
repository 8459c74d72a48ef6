// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @modelcontextprotocol/inspector 2.12.0 (command line)
import { program, run, texts } from "./lines.mjs";

await run(async (url, token) => {
  const common = ["--cli", url, "--transport", "http", "--format", "json", "--stored-auth-only"];
  if (token) common.push("--header", `Authorization: Bearer ${token}`);
  const method = async (signal, ...args) => {
    const { stdout, stderr } = await program("mcp-inspector", [...common, "--method", ...args], signal);
    if (!stdout) throw new Error(stderr);
    return JSON.parse(stdout).result;
  };
  return {
    tools: async () => (await method(undefined, "tools/list")).tools.map((tool) => tool.name),
    call: async (tool, args, signal) => {
      const { content } = await method(
        signal, "tools/call", "--tool-name", tool, "--tool-args-json", JSON.stringify(args));
      return { shown: texts(content), picture: content.some((block) => block.type === "image") };
    },
  };
});
