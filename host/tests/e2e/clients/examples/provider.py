# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the API of OpenAI, whose model has a fixed plan: make an environment, run a command in it, and report.

Clients find it with OPENAI_BASE_URL. Agents use either of the API's two forms, chat completions or responses.
"""

import contextlib
import http.server
import json
import re
import threading

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def planned(results, code):
    """The next call as a name and arguments, or the text of the answer, after these results of calls."""
    if not results:
        return "create_environment", {"language": "python"}
    if len(results) == 1:
        return "execute", {"environment_id": ID.search(results[0]).group(), "code": code}
    return f"The command's result: {results[-1]}"


def chat_completion(asked, code):
    results = [str(message["content"]) for message in asked["messages"] if message["role"] == "tool"]
    step, message = planned(results, code), {"role": "assistant", "content": None}
    if isinstance(step, str):
        message["content"] = step
    else:
        function = {"name": step[0], "arguments": json.dumps(step[1])}
        message["tool_calls"] = [{"id": f"call_{len(results)}", "type": "function", "function": function}]
    reason = "stop" if isinstance(step, str) else "tool_calls"
    return {
        "id": "chat",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def response(asked, code):
    results = [str(item["output"]) for item in asked["input"] if item.get("type") == "function_call_output"]
    step, identity = planned(results, code), f"item_{len(results)}"
    if isinstance(step, str):
        text = {"type": "output_text", "text": step, "annotations": []}
        item = {"type": "message", "id": identity, "role": "assistant", "status": "completed", "content": [text]}
    else:
        call = {"call_id": f"call_{len(results)}", "name": step[0], "arguments": json.dumps(step[1])}
        item = {"type": "function_call", "id": identity, "status": "completed", **call}
    return {
        "id": "response",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": asked["model"],
        "output": [item],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }


@contextlib.contextmanager
def provider(code):
    """The base URL of the API, whose model runs this code."""

    class Api(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            form = response if self.path.endswith("/responses") else chat_completion
            body = json.dumps(form(asked, code)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
