// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// @google/gemini-cli 0.61.0 (with a stand-in for the model)
import { mkdirSync, writeFileSync } from "node:fs";
import { home, program, run } from "./lines.mjs";
import { agent } from "./model.mjs";

await run((url, token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const settings = {
    security: { auth: { selectedType: "gemini-api-key" } },
    mcpServers: { waggle: { httpUrl: url, headers, trust: true } },
  };
  mkdirSync(`${home}/.gemini`, { recursive: true });
  writeFileSync(`${home}/.gemini/settings.json`, JSON.stringify(settings));
  const args = ["--skip-trust", "--model", "gemini-2.5-flash", "--yolo", "--prompt", "go"];
  return agent("gemini", (api, signal) =>
    program("gemini", args, signal, { GEMINI_API_KEY: "x", GOOGLE_GEMINI_BASE_URL: api }),
  );
});
