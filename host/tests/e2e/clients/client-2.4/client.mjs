// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @modelcontextprotocol/client 2.4.0
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { run, typescript } from "./lines.mjs";

await run(async (url, token) => {
  const client = new Client({ name: "waggle-clients", version: "1" }, { versionNegotiation: { mode: "auto" } });
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  return typescript(client, (request, options) => client.callTool(request, options));
});
