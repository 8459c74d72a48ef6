# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a client of the matrix in its own environment, and talks to it in lines of JSON.

A client is a folder beside this file with a program (client.py or client.mjs) and its pinned requirements (requirements.txt
or package.json). `prepare` installs it. The program gets the server's URL as its argument, and the bearer token, if any, in
WAGGLE_TOKEN. It connects and prints {"ready": true}, or {"failed": REASON} if it cannot connect. Then it answers each line:

- {"do": "tools"}: {"tools": [NAME...]}, as the framework knows them after it has converted their schemas.
- {"do": "call", "tool": NAME, "arguments": {...}}: {"shown": TEXT, "picture": BOOL, "error": REASON or null, "progress":
  COUNT}. TEXT is what the framework would give to a model, and `picture` says whether the model gets a picture. `error` is
  the reason why the framework ends the whole run, in which case a model sees nothing.
- {"do": "cancel", "tool": NAME, "arguments": {...}, "after": SECONDS}: starts the call and cancels it as the framework's user
  would; {"cancelled": true} when the client has given up.
"""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import threading

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[3]
INSTALLED = ROOT / "target/clients"


class Died(Exception):
    """The client's program ended or did not answer; the message has the end of its output."""


class Driver:
    """A running client."""

    def __init__(self, client, url, token=None):
        self.client = client
        self.lines = queue.Queue()
        self.noise = []
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.pop("WAGGLE_TOKEN", None)
        if token:
            environment["WAGGLE_TOKEN"] = token
        # Its own group, so that the programs that the client starts end with it.
        self.process = subprocess.Popen(
            [*command(client), url],
            env=environment,
            cwd=INSTALLED / client,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if isinstance(answer, dict) and answer.keys() & {"ready", "failed", "tools", "shown", "cancelled"}:
                self.lines.put(answer)
            else:
                # Frameworks print warnings and logs.
                self.noise.append(line)
        self.lines.put(None)

    def answer(self, timeout_s):
        """The next answer of the client."""
        try:
            answer = self.lines.get(timeout=timeout_s)
        except queue.Empty:
            raise Died(f"no answer within {timeout_s} s") from None
        if answer is None:
            raise Died("ended: " + "".join(self.noise)[-500:].strip())
        return answer

    def do(self, timeout_s=180, **request):
        """Sends a request to the client and waits for its answer."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Died("ended: " + "".join(self.noise)[-500:].strip()) from None
        answer = self.answer(timeout_s)
        if "failed" in answer:
            raise Died(f"ended: {answer['failed']}")
        return answer

    def call(self, tool, timeout_s=180, **arguments):
        return self.do(timeout_s, do="call", tool=tool, arguments=arguments)

    def stop(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.reader.join(5)


def command(client):
    """The command that starts a client."""
    folder = FOLDER / client
    if (folder / "client.mjs").exists():
        # Node resolves modules relative to the script, so `prepare` copies the script to its packages.
        return [ROOT / "target/e2e-venv/bin/node", INSTALLED / client / "client.mjs"]
    return [INSTALLED / client / "bin/python", folder / "client.py"]
