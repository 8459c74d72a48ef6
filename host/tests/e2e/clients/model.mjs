// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// A stand-in for the APIs of three model providers, for the agents on the command line. In each run it calls one tool,
// and keeps what the model gets as its result.
import { createServer } from "node:http";

const events = (list, named) =>
  list.map((event) => `${named ? `event: ${event.type}\n` : ""}data: ${JSON.stringify(event)}\n\n`);
const text = (block) => block.text ?? "";
const usage = { input_tokens: 1, output_tokens: 1 };

// `tools` are the tools of a request, `result` is what it has as the result of the call, and `answer` makes the call,
// or ends the run without one.
const anthropic = {
  path: /\/messages$/,
  tools: (body) => body.tools ?? [],
  result(body) {
    const blocks = body.messages.flatMap((message) => message.content);
    const found = blocks.find((block) => block.tool_use_id === "toolu_1");
    return found && [found.content].flat().map((block) => (typeof block === "string" ? { text: block } : block));
  },
  answer(call) {
    const content_block = call
      ? { type: "tool_use", id: "toolu_1", name: call.tool.name, input: {} }
      : { type: "text", text: "" };
    const delta = call
      ? { type: "input_json_delta", partial_json: JSON.stringify(call.args) }
      : { type: "text_delta", text: "done" };
    const message = { id: "msg_1", type: "message", role: "assistant", model: "stand-in", content: [], usage };
    return events(
      [
        { type: "message_start", message },
        { type: "content_block_start", index: 0, content_block },
        { type: "content_block_delta", index: 0, delta },
        { type: "content_block_stop", index: 0 },
        { type: "message_delta", delta: { stop_reason: call ? "tool_use" : "end_turn" }, usage },
        { type: "message_stop" },
      ],
      true,
    );
  },
};

const openai = {
  path: /\/responses$/,
  tools: (body) =>
    (body.tools ?? []).flatMap((tool) =>
      tool.type === "namespace" ? tool.tools.map((inner) => ({ ...inner, namespace: tool.name })) : tool,
    ),
  result(body) {
    const found = body.input.find((item) => item.call_id === "call_1" && item.output !== undefined);
    return found && [found.output].flat().map((block) => (typeof block === "string" ? { text: block } : block));
  },
  answer(call) {
    const item = call
      ? {
          type: "function_call",
          call_id: "call_1",
          name: call.tool.name,
          namespace: call.tool.namespace,
          arguments: JSON.stringify(call.args),
        }
      : { type: "message", role: "assistant", content: [{ type: "output_text", text: "done", annotations: [] }] };
    const response = { id: "resp_1", output: [item], usage: { ...usage, total_tokens: 2 } };
    return events(
      [
        { type: "response.created", response: { id: "resp_1" } },
        { type: "response.output_item.done", output_index: 0, item },
        { type: "response.completed", response },
      ],
      true,
    );
  },
};

const gemini = {
  path: /:streamGenerateContent$/,
  tools: (body) => (body.tools ?? []).flatMap((tool) => tool.functionDeclarations ?? []),
  result(body) {
    const parts = body.contents.findLast((content) => content.parts.some((part) => part.functionResponse))?.parts;
    return parts?.flatMap(({ functionResponse, ...part }) => {
      if (!functionResponse) return part;
      const { output, error, ...rest } = functionResponse.response;
      const shown = [output, error].filter((value) => typeof value === "string");
      return [{ text: shown.length ? shown.join("\n") : JSON.stringify(rest) }, ...(functionResponse.parts ?? [])];
    });
  },
  answer(call) {
    const part = call ? { functionCall: { name: call.tool.name, args: call.args } } : { text: "done" };
    const candidates = [{ content: { role: "model", parts: [part] }, finishReason: "STOP", index: 0 }];
    const usageMetadata = { promptTokenCount: 1, candidatesTokenCount: 1, totalTokenCount: 2 };
    return events([{ candidates, usageMetadata }]);
  },
};

const isPicture = (block) =>
  ["image", "input_image"].includes(block.type) || block.inlineData?.mimeType?.startsWith("image/");
// Agents write the names of tools in different ways, with the server's name in front.
const plain = (name) => name.replaceAll("-", "_");

// The functions for `run` (see lines.mjs). `start(api, signal)` starts the agent with the API's address, and returns
// its output.
export async function agent(provider, start) {
  const { path, tools, result, answer } = { anthropic, openai, gemini }[provider];
  let wanted, names, got;
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request.setEncoding("utf8")) body += chunk;
    if (request.method !== "POST" || !path.test(request.url.split("?")[0])) {
      response.setHeader("content-type", "application/json").end('{"data":[],"models":[],"input_tokens":1}');
      return;
    }
    body = JSON.parse(body);
    const known = tools(body);
    for (const tool of known) names.add(`${tool.namespace ?? ""}__${tool.name}`);
    got = result(body) ?? got;
    const isWanted = ({ namespace = "", name }) =>
      `${namespace}${name}`.includes("waggle") && plain(name).endsWith(plain(wanted.tool));
    const tool = wanted && known.find(isWanted);
    response.setHeader("content-type", "text/event-stream");
    response.end(answer(tool && !got ? { tool, args: wanted.args } : undefined).join(""));
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const once = async (call, signal) => {
    [wanted, names, got] = [call, new Set(), undefined];
    return start(`http://127.0.0.1:${server.address().port}`, signal);
  };
  return {
    tools: async () => {
      await once();
      return [...names].filter((name) => name.includes("waggle"));
    },
    call: async (tool, args, signal) => {
      const { stdout, stderr } = await once({ tool, args }, signal);
      if (!got) throw new Error(`the model got no result: ${stdout.slice(-1000)} ${stderr.slice(-1000)}`);
      return { shown: got.map(text).join("\n"), picture: got.some(isPicture) };
    },
  };
}
