// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// A call's stream is cut, the call ends meanwhile, and the official TypeScript client receives its result by resuming
// the stream. Arguments: the server's URL, and "legacy" or "previous" as for story.mjs; the current version of the
// protocol has no resumption.
import assert from "node:assert/strict";
import net from "node:net";
import { setTimeout } from "node:timers/promises";

const [url, mode] = process.argv.slice(2);
const previous = mode === "previous";
const sdk = "@modelcontextprotocol/sdk/client";
const { Client } = await import(previous ? `${sdk}/index.js` : "@modelcontextprotocol/client");
const { StreamableHTTPClientTransport } = await import(
  previous ? `${sdk}/streamableHttp.js` : "@modelcontextprotocol/client"
);
async function connect(url) {
  const client = new Client({ name: "waggle-e2e", version: "1" }, { versionNegotiation: { mode: "legacy" } });
  await client.connect(new StreamableHTTPClientTransport(url));
  return client;
}

// Forwards connections to the server, and keeps what the client sends. New connections wait for `opened`.
let opened = Promise.resolve();
let sent = "";
const sockets = new Set();
const forwarder = net.createServer(async (near) => {
  near.on("error", () => {}).on("data", (data) => (sent += data)).pause();
  await opened;
  const far = net.connect(new URL(url).port, "127.0.0.1").on("error", () => {});
  for (const socket of [near, far]) sockets.add(socket.on("close", () => sockets.delete(socket)));
  near.pipe(far).pipe(near);
});
await new Promise((listening) => forwarder.listen(0, "127.0.0.1", listening));
const through = new URL(url);
through.port = forwarder.address().port;

// One client's connections are cut; the other is connected directly.
const [cut, direct] = await Promise.all([connect(through), connect(new URL(url))]);
const call = async (client, name, args = {}) => {
  const request = [{ name, arguments: args }];
  if (previous) request.push(undefined);
  const result = await client.callTool(...request, { timeout: 120_000 });
  assert.ok(!result.isError, `${name}: ${JSON.stringify(result.content)}`);
  return result.structuredContent;
};
const { environment_id } = await call(direct, "create_environment", { language: "python" });
const written = async (path) => {
  const names = async () => (await call(direct, "list_files", { environment_id })).files.map((file) => file.name);
  while (!(await names()).includes(path)) await setTimeout(50);
};

const code = "touch begun; sleep 2; echo x; touch ended";
const ran = call(cut, "execute", { environment_id, language: "shell", code });
await written("begun");
await setTimeout(1000);
let open;
opened = new Promise((resolve) => (open = resolve));
for (const socket of sockets) socket.destroy();
await written("ended");
await setTimeout(500);
const before = sent.length;
open();
const { stdout, exit_code } = await ran;
assert.deepEqual({ stdout, exit_code }, { stdout: "x\n", exit_code: 0 });
assert.match(sent.slice(before), /^last-event-id: /im);
assert.equal(sent.match(/"tools\/call"/g).length, 1);

await call(direct, "destroy_environment", { environment_id });
await Promise.all([cut.close(), direct.close()]);
forwarder.close();
console.log("the end");
