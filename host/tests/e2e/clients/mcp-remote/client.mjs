// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// mcp-remote 0.15.1 (with @modelcontextprotocol/sdk 1.32.2)
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { home, run } from "./lines.mjs";
import { sdk } from "./sdk.mjs";

await run((url, token) => {
  const args = ["node_modules/mcp-remote/dist/proxy.js", url, "--transport", "http-only"];
  if (token) args.push("--header", `Authorization: Bearer ${token}`);
  return sdk(new StdioClientTransport({ command: process.execPath, args, env: { ...process.env, HOME: home } }));
});
