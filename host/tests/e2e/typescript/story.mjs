// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// The first steps of a user, with the official TypeScript client. Arguments: the server's URL, and the negotiation mode or
// "previous" for the client's previous generation.
import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

const [url, mode] = process.argv.slice(2);
const previous = mode === "previous";
const sdk = "@modelcontextprotocol/sdk/client";
const { Client } = await import(previous ? `${sdk}/index.js` : "@modelcontextprotocol/client");
const { StreamableHTTPClientTransport } = await import(
  previous ? `${sdk}/streamableHttp.js` : "@modelcontextprotocol/client"
);
const client = new Client({ name: "waggle-e2e", version: "1" }, { versionNegotiation: { mode } });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

// The timeout of a call in ms, for software emulation on a busy machine.
const options = { timeout: 120_000 };
const raw = (name, args, more = {}) => {
  const request = [{ name, arguments: args }];
  if (previous) request.push(undefined);
  return client.callTool(...request, { ...options, ...more });
};
const call = async (name, args = {}) => {
  const result = await raw(name, args);
  assert.ok(!result.isError, `${name}: ${JSON.stringify(result.content)}`);
  return result;
};

const { tools } = await client.listTools();
assert.deepEqual(tools.map((tool) => tool.name).sort(), [
  "create_environment",
  "destroy_environment",
  "execute",
  "install_packages",
  "list_environments",
  "list_files",
  "read_file",
  "write_file",
]);

const made = (await call("create_environment", { language: "python" })).structuredContent;
assert.equal(made.status, "running");
const environment_id = made.environment_id;

const csv = "name,legs\nbee,6\nspider,8\n";
await call("write_file", { environment_id, path: "animals.csv", content: csv });
const code = "import csv; print(sum(int(row['legs']) for row in csv.DictReader(open('animals.csv'))))";
const ran = await call("execute", { environment_id, code });
assert.equal(ran.structuredContent.stdout, "14\n");
assert.equal(ran.structuredContent.exit_code, 0);
const read = await call("read_file", { environment_id, path: "animals.csv" });
assert.equal(read.content[0].text, csv);
const failed = await call("execute", { environment_id, language: "shell", code: "exit 3" });
assert.equal(failed.structuredContent.exit_code, 3);
const refused = await raw("read_file", { environment_id, path: "nothing" });
assert.ok(refused.isError);
assert.equal(refused._meta["waggle/error"].code, "not_found");

// A cancelled call also ends in the machine: no `sleep` process is left.
const abort = new AbortController();
const endless = { environment_id, language: "shell", code: "touch started; sleep 1000" };
const cancelled = raw("execute", endless, { signal: abort.signal }).then(() => "answered", () => "cancelled");
const has = async (name) => (await call("list_files", { environment_id })).structuredContent.files.some((file) => file.name === name);
while (!(await has("started"))) await setTimeout(50);
abort.abort();
assert.equal(await cancelled, "cancelled");
const sleepers = "import os; print([p for p in os.listdir('/proc') if p.isdigit() and b'sleep' in open(f'/proc/{p}/cmdline', 'rb').read()])";
while ((await call("execute", { environment_id, code: sleepers })).structuredContent.stdout !== "[]\n") await setTimeout(50);
assert.equal((await call("list_environments")).structuredContent.count, 1);
await call("destroy_environment", { environment_id });
await client.close();
console.log("the end");
