// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// The first steps of a user, with the official TypeScript client. Arguments: the server's URL, the negotiation mode.
import assert from "node:assert/strict";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [url, mode] = process.argv.slice(2);
const client = new Client({ name: "waggle-e2e", version: "1" }, { versionNegotiation: { mode } });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));

// Software emulation on a busy machine.
const options = { timeout: 120_000 };
const call = async (name, args = {}) => {
  const result = await client.callTool({ name, arguments: args }, options);
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

const made = (await call("create_environment", { runtime: "python" })).structuredContent;
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
const refused = await client.callTool({ name: "read_file", arguments: { environment_id, path: "nothing" } }, options);
assert.ok(refused.isError);
assert.equal((await call("list_environments")).structuredContent.count, 1);
await call("destroy_environment", { environment_id });
await client.close();
console.log("the end");
