// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @openai/codex 0.171.0 (with a stand-in for the model)
import { mkdirSync, writeFileSync } from "node:fs";
import { home, program, run } from "./lines.mjs";
import { agent } from "./model.mjs";

await run((url, token) =>
  agent("openai", (api, signal) => {
    mkdirSync(`${home}/.codex`, { recursive: true });
    // Without `tool_timeout_sec`, a call may take 60 s.
    writeFileSync(
      `${home}/.codex/config.toml`,
      `model = "stand-in"
model_provider = "local"
[model_providers.local]
name = "local"
base_url = "${api}/v1"
wire_api = "responses"
[mcp_servers.waggle]
url = "${url}"
tool_timeout_sec = 330
${token ? 'bearer_token_env_var = "WAGGLE_TOKEN"' : ""}
`,
    );
    const args = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "go"];
    return program("codex", args, signal);
  }),
);
