// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @modelcontextprotocol/sdk 1.22.0
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { run } from "./lines.mjs";
import { sdk } from "./sdk.mjs";

await run((url, token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return sdk(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
});
