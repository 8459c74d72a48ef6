// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// The lines of JSON in which a Node client answers (see driver.py). `prepare` copies this file to the packages
// of each client.
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

function reason(error) {
  const code = error?.code === undefined ? "" : ` ${error.code}`;
  return `${error?.name ?? typeof error}${code}: ${error?.message ?? error}`.slice(0, 500);
}

// Connects with `connect(url, token)`, and answers each line with the functions that it returns: `tools()` returns the
// names, and `call(tool, arguments, signal)` the answer; it throws if the framework ends the run.
export async function run(connect) {
  let client;
  try {
    client = await connect(process.argv[2], process.env.WAGGLE_TOKEN);
  } catch (error) {
    say({ failed: reason(error) });
    process.exit();
  }
  say({ ready: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    if (request.do === "tools") {
      say(await client.tools().then((tools) => ({ tools }), (error) => ({ tools: [], error: reason(error) })));
      continue;
    }
    const abort = new AbortController();
    const ended = client.call(request.tool, request.arguments, abort.signal).then(
      (answer) => ({ shown: "", picture: false, error: null, progress: 0, ...answer }),
      (error) => ({ shown: "", picture: false, error: reason(error), progress: 0 }),
    );
    if (request.do === "cancel") {
      await setTimeout(request.after * 1000);
      abort.abort();
      await ended;
      say({ cancelled: true });
    } else {
      say(await ended);
    }
  }
  process.exit();
}

// What most frameworks pass on of a result: its texts.
export function texts(content) {
  return content.filter((block) => block.type === "text").map((block) => block.text).join("\n");
}

// The folder of a program's settings. `driver.py` starts a client in the folder of its packages.
export const home = `${process.cwd()}/home`;
mkdirSync(home, { recursive: true });

// Runs a program of the client's packages; an abort is Ctrl-C.
export function program(name, args, signal, env = {}) {
  const all = { ...process.env, HOME: home, PATH: `${process.cwd()}/node_modules/.bin:${process.env.PATH}`, ...env };
  // A group, because Ctrl-C interrupts also what the program has started.
  const child = spawn(name, args, { env: all, cwd: home, stdio: ["ignore", "pipe", "pipe"], detached: true });
  const kill = (how) => child.pid && process.kill(-child.pid, how);
  signal?.addEventListener("abort", () => kill("SIGINT"));
  const end = () => kill("SIGKILL");
  process.stdin.once("end", end);
  // The harness looks for complaints about the server in it.
  child.stderr.pipe(process.stderr, { end: false });
  const ran = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) child[name].setEncoding("utf8").on("data", (text) => (ran[name] += text));
  return new Promise((resolve, reject) => {
    child.on("error", reject).on("close", () => {
      process.stdin.off("end", end);
      resolve(ran);
    });
  });
}

// The functions for `run` of a connected client of @modelcontextprotocol/sdk or @modelcontextprotocol/client.
export function typescript(client, callTool) {
  return {
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (tool, args, signal) => {
      let progress = 0;
      // Without `timeout`, a call may take 60 s.
      const options = { timeout: 330_000, signal, onprogress: () => progress++ };
      const { content } = await callTool({ name: tool, arguments: args }, options);
      return { shown: texts(content), picture: content.some((block) => block.type === "image"), progress };
    },
  };
}
