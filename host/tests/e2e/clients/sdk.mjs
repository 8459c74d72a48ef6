// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// Connects a client of @modelcontextprotocol/sdk, for lines.mjs.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { typescript } from "./lines.mjs";

export async function sdk(transport) {
  const client = new Client({ name: "waggle-clients", version: "1" });
  // Hosts like Gemini CLI close the connection when the client reports what it cannot parse.
  let unreadable;
  client.onerror = (error) => {
    console.error(`onerror: ${error}`);
    if (error instanceof SyntaxError) unreadable = error;
  };
  await client.connect(transport);
  return typescript(client, async (request, options) => {
    const result = await client.callTool(request, undefined, options);
    if (unreadable) throw unreadable;
    return result;
  });
}
