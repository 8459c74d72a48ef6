// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// Long calls as tasks, with the official TypeScript client and its tasks package. Argument: the server's URL.
import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { createTaskSessionFromClient, resultFromTaskOutcome } from "@modelcontextprotocol/ext-tasks/client";

const url = process.argv[2];
const about = { name: "waggle-e2e", version: "1" };
const client = new Client(about, { versionNegotiation: { mode: "auto" } });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

// The client's response parser treats a task as an error, so the tasks package requires a function that sends requests.
let id = 0;
async function rawDispatch(request, { signal } = {}) {
  const response = await fetch(url, {
    method: "POST",
    signal,
    headers: {
      "content-type": "application/json",
      accept: "application/json, text/event-stream",
      "mcp-protocol-version": "2026-07-28",
      "mcp-method": request.method,
      "mcp-name": request.params.name ?? request.params.taskId,
    },
    body: JSON.stringify({ jsonrpc: "2.0", id: ++id, ...request }),
  });
  const { result, error } = await response.json();
  return error ? { kind: "error", error } : { kind: "result", result };
}

const v2RequestFraming = { protocolVersion: "2026-07-28", clientInfo: about, clientCapabilities: {} };
const session = createTaskSessionFromClient(client, { endpointId: "waggle", rawDispatch, v2RequestFraming });
const settled = async (execution) => resultFromTaskOutcome((await execution.settle()).outcome).structuredContent;

// A result or a task, depending on how long the machine's start takes.
const made = await settled(await session.callTool("create_environment", { language: "python" }));
assert.equal(made.status, "running");
const environment_id = made.environment_id;
const shell = (code) => session.callTool("execute", { environment_id, language: "shell", code, timeout_seconds: 200 });

// The command runs until the file exists, so its call becomes a task.
const long = await shell("while [ ! -e go ]; do sleep 0.1; done; echo well");
assert.equal(long.kind, "task");
const short = await session.callTool("write_file", { environment_id, path: "go", content: "" });
assert.equal(short.kind, "immediate");
assert.equal((await settled(long)).stdout, "well\n");

const endless = await shell("sleep 1000 & sleep 1000");
assert.equal(endless.kind, "task");
await endless.cancel();
assert.equal((await endless.settle()).outcome.status, "cancelled");
const sleepers = "import os; print([p for p in os.listdir('/proc') if p.isdigit() and b'sleep' in open(f'/proc/{p}/cmdline', 'rb').read()])";
const left = async () => settled(await session.callTool("execute", { environment_id, code: sleepers }));
while ((await left()).stdout !== "[]\n") await setTimeout(50);

await settled(await session.callTool("destroy_environment", { environment_id }));
await session.close();
await client.close();
console.log("the end");
