# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""google-genai 3.6.1"""

import http.server
import json
import os
import sys
import threading

from google import genai
from mcp import ClientSession
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

sys.path.append(os.path.join(os.path.dirname(__file__), ".."))
from lines import run, serve  # noqa: E402


class Gemini(http.server.BaseHTTPRequestHandler):
    """A stand-in for the API: makes the wanted call, and ends with its result."""

    wanted = None
    known = []
    given = None

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Gemini.known = [one["name"] for tool in asked["tools"] for one in tool["functionDeclarations"]]
        results = [part["functionResponse"] for part in asked["contents"][-1]["parts"] if "functionResponse" in part]
        Gemini.given = results[0] if results else None
        part = {"text": "done"} if results or not Gemini.wanted else {"functionCall": Gemini.wanted}
        body = json.dumps({"candidates": [{"content": {"role": "model", "parts": [part]}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


async def main():
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gemini)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    models = genai.Client(api_key="none", http_options={"base_url": f"http://127.0.0.1:{api.server_port}"}).aio.models
    token = os.environ.get("WAGGLE_TOKEN")
    # By default, a call has no time limit as long as the server sends something at least every 5 minutes.
    async with create_mcp_http_client({"Authorization": f"Bearer {token}"} if token else None) as http_client:
        async with streamable_http_client(sys.argv[1], http_client=http_client) as (read, write, *_):
            async with ClientSession(read, write) as session:
                await session.initialize()

                async def ask(wanted):
                    Gemini.wanted = wanted
                    await models.generate_content(model="gemini", contents="Do it.", config={"tools": [session]})

                async def tools():
                    await ask(None)
                    return Gemini.known

                async def call(tool, arguments):
                    await ask({"name": tool, "args": arguments})
                    shown = json.dumps(Gemini.given["response"], ensure_ascii=False)
                    picture = any("inlineData" in part for part in Gemini.given.get("parts", []))
                    return {"shown": shown, "picture": picture, "error": None}

                await serve(tools, call)


run(main())
