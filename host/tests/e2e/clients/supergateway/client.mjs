// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// supergateway 4.0.0 (with @modelcontextprotocol/sdk 1.32.2)
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { run } from "./lines.mjs";
import { sdk } from "./sdk.mjs";

await run((url, token) => {
  const args = ["node_modules/supergateway/dist/index.js", "--streamableHttp", url];
  if (token) args.push("--oauth2Bearer", token);
  return sdk(new StdioClientTransport({ command: process.execPath, args }));
});
