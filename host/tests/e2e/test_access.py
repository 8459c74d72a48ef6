# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens, passwords, and clients that start the server themselves."""

import asyncio
import base64
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from server import BINARY, STOP_S
from test_calls import LEFT, PROGRAMS, until_started
from test_start import refused

ADA = "ada-has-this-token-1"
BOB = "bob-has-this-token-1"
PASSWORD = "honey-in-the-pot"

NEW_KEY = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

pytestmark = pytest.mark.outside("reads and writes the server's own files, or starts it as a client does")


def tokens_file(folder, text=f"# who may\nada {ADA}\nbob {BOB}\n", mode=0o600):
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def status(server, token):
    """The HTTP status of a request with this token: 400 if the server accepts it, as the body is not a message."""
    request = urllib.request.Request(server.url, data=b"{}", headers={"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=10)
    return answer.value.code


def test_a_server_on_every_address_does_not_start_without_tokens(serve):
    assert "auth-tokens-file" in refused(serve(LISTEN_ADDR="0.0.0.0:0"))


def test_a_tokens_file_that_others_can_read_stops_the_start(serve, tmp_path):
    output = refused(serve(AUTH_TOKENS_FILE=str(tokens_file(tmp_path, mode=0o644))))
    assert "0644" in output and ADA not in output


async def test_tokens_keep_callers_apart_and_out_of_the_log(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "trace")
    path = tokens_file(tmp_path)
    # Listens on every address, like a server behind a proxy.
    server = serve(AUTH_TOKENS_FILE=str(path))
    server.settings["LISTEN_ADDR"] = f"0.0.0.0:{server.port}"
    server.start()
    # The server warns that it receives tokens over plain HTTP.
    assert f"0.0.0.0:{server.port} is not a loopback address and the server has no TLS" in server.output()
    assert "WAGGLE_TLS_CERT" in server.output()
    assert [status(server, token) for token in (None, "nobody-has-this-token", ADA)] == [401, 401, 400]
    for mode in ("legacy", "2026-07-28"):
        async with server.client(ADA, mode=mode) as ada, server.client(BOB, mode=mode) as bob:
            async with ada.environment("shell") as made:
                assert (await ada.call("list_environments"))["count"] == 1
                assert (await bob.call("list_environments"))["count"] == 0
                assert "not found; list_environments" in await bob.refusal(
                    "execute", environment_id=made["environment_id"], code="true"
                )
    # An invalid file changes nothing, and a valid one takes effect at once.
    for text, said, ada_status in [
        (f"ada {ADA}\nnonsense\n", "failed to reload the tokens", 400),
        (f"bob {BOB}\n", "reloaded the tokens", 401),
    ]:
        path.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + STOP_S
        while said not in server.output():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (status(server, ADA), status(server, BOB)) == (ada_status, 400)
    log = server.output()
    # The log has every level, but no token.
    assert "TRACE" in log
    assert ADA not in log and BOB not in log and "nobody-has-this-token" not in log


def authority(folder):
    """Makes an authority, and returns the path of its certificate."""
    openssl(folder, f"{NEW_KEY} -x509 -days 2 -subj /CN=hive -keyout authority-key.pem -out authority.pem")
    return folder / "authority.pem"


def issue(folder, name):
    """Makes a certificate for 127.0.0.1 that the authority signs; returns the paths of the certificate and its key."""
    openssl(folder, f"{NEW_KEY} -subj /CN={name} -keyout {name}-key.pem -out {name}-request.pem")
    signer = "-CA authority.pem -CAkey authority-key.pem -CAcreateserial -extfile /dev/stdin"
    files = f"-in {name}-request.pem -out {name}.pem"
    openssl(folder, f"openssl x509 -req -days 2 {signer} {files}", b"subjectAltName=IP:127.0.0.1\n")
    return folder / f"{name}.pem", folder / f"{name}-key.pem"


def openssl(folder, command, text=b""):
    subprocess.run(command.split(), cwd=folder, input=text, check=True, capture_output=True)


async def test_clients_reach_a_server_with_tls_and_its_certificate_is_reloaded(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "trace")
    root = authority(tmp_path)
    first, second = issue(tmp_path, "bee"), issue(tmp_path, "wasp")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"

    def install(pair):
        certificate.write_bytes(pair[0].read_bytes())
        key.write_bytes(pair[1].read_bytes())
        key.chmod(0o600)

    install(first)
    # Every client uses it: this process, the official client and waggle's own commands.
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    server = serve(TLS_CERT=str(certificate), TLS_KEY=str(key), AUTH_TOKENS_FILE=str(tokens_file(tmp_path)))
    server.settings["LISTEN_ADDR"] = f"0.0.0.0:{server.port}"
    server.scheme = "https"
    server.start()
    assert f"waggle serves MCP at https://127.0.0.1:{server.port}/mcp" in server.output()
    assert "has no TLS" not in server.output()
    for mode in ("legacy", "2026-07-28"):
        async with server.client(ADA, mode=mode) as tools:
            assert (await tools.call("list_environments"))["count"] == 0

    def ps(url):
        command = [BINARY, "ps", "--json", "--url", url]
        return subprocess.run(command, env=os.environ | {"WAGGLE_TOKEN": ADA}, capture_output=True, text=True, timeout=60)

    listed = ps(server.url)
    assert json.loads(listed.stdout)["count"] == 0, listed
    plain = ps(server.url.replace("https:", "http:"))
    assert plain.returncode == 1 and "this server speaks HTTPS; use a URL that begins with https://" in plain.stderr, plain

    def shown():
        return ssl.get_server_certificate(("127.0.0.1", server.port), ca_certs=str(root))

    assert shown() == first[0].read_text()
    # A key that does not belong to the certificate changes nothing, and a valid pair takes effect at once.
    for pair, said, expected in [
        ((second[0], first[1]), "failed to reload the certificate and its key; the old ones stay", first),
        (second, "reloaded the certificate and its key", second),
    ]:
        install(pair)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + STOP_S
        while said not in server.output():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert shown() == expected[0].read_text()
    # The tokens are read again at the same time.
    assert "reloaded the tokens" in server.output() and status(server, ADA) == 400
    log = server.output()
    assert "TRACE" in log
    lines = [line for pair in (first, second) for line in pair[1].read_text().splitlines() if "-----" not in line]
    assert len(lines) == 6 and not any(line in log for line in lines)


def test_a_start_with_a_wrong_certificate_or_key_says_why(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "trace")
    authority(tmp_path)
    (certificate, key), (_, other) = issue(tmp_path, "bee"), issue(tmp_path, "wasp")
    for pair, said in [
        ({"TLS_CERT": str(certificate)}, "must be set together"),
        ({"TLS_CERT": str(certificate), "TLS_KEY": str(other)}, f"failed to use the key in {other}"),
        ({"TLS_CERT": str(key), "TLS_KEY": str(key)}, f"invalid certificate in {key}"),
        ({"TLS_CERT": str(certificate), "TLS_KEY": str(certificate)}, "0600"),
        ({"TLS_CERT": str(tmp_path / "absent"), "TLS_KEY": str(key)}, f"failed to read the certificate in {tmp_path}/absent"),
    ]:
        output = refused(serve(**pair))
        assert said in output, output
        lines = [line for one in (key, other) for line in one.read_text().splitlines() if "-----" not in line]
        assert not any(line in output for line in lines)


async def test_the_proxy_password_stays_out_of_the_log(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "trace")
    heads = []

    async def carry(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbanner" if len(heads) == 1 else b"HTTP/1.1 407 No\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(carry, "127.0.0.1", 0)
    path = tmp_path / "proxy"
    path.write_text(f"http://bee:{PASSWORD}@127.0.0.1:{proxy.sockets[0].getsockname()[1]}\n")
    path.chmod(0o600)
    server = serve(EGRESS="192.0.2.0/24", EGRESS_PROXY_FILE=str(path)).start()
    async with proxy, server.client() as tools, tools.environment("python") as made:
        code = "import socket\nprint(socket.create_connection(('192.0.2.7', 443), timeout=60).recv(6).decode())"
        told = []
        for expected in (0, 1):
            ran = await tools.call("execute", environment_id=made["environment_id"], code=code)
            assert ran["exit_code"] == expected, ran
            told.append(ran)
        told.append(await tools.call("list_environments"))
        told.append(server.status(f"/environments/{made['environment_id']}/log"))
    shown = base64.b64encode(f"bee:{PASSWORD}".encode())
    assert len(heads) == 2 and all(b"Basic " + shown + b"\r\n" in head for head in heads), heads
    log = server.output()
    assert "TRACE" in log
    for text in (log, json.dumps(told)):
        assert PASSWORD not in text and shown.decode() not in text


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_client_talks_to_a_server_that_it_starts_itself(serve, mode):
    server = serve()
    async with server.conversation(mode=mode) as tools:
        made = await tools.call("create_environment", language="python")
        one = made["environment_id"]
        heard = []

        async def hear(progress, total, message):
            heard.append(message)

        code = "import time; print('early', flush=True); time.sleep(1); print('late')"
        result = await tools.client.call_tool(
            "execute", {"environment_id": one, "code": code}, progress_callback=hear
        )
        assert result.structured_content.get("stdout") == "early\nlate\n", result
        # An unbuffered `print` writes the line and its end separately.
        assert any("early" in part and "late" not in part for part in heard), heard
        language, code = PROGRAMS["a shell's children"]
        running = asyncio.create_task(tools.raw("execute", environment_id=one, code=code, language=language))
        await until_started(tools, one, "a shell's children")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        deadline = time.monotonic() + STOP_S
        while (await tools.call("execute", environment_id=one, code=LEFT))["stdout"] != "[]\n":
            assert time.monotonic() < deadline
    # The server ended with its input, and left nothing of its environment; its log is on standard error.
    server.assert_nothing_left(within_s=STOP_S)
    assert "shutting down" in server.output()


async def test_a_stdio_server_stopped_during_a_call_leaves_nothing(serve):
    server = serve()
    async with server.conversation() as tools:
        one = (await tools.call("create_environment", language="shell"))["environment_id"]
        running = asyncio.create_task(tools.raw("execute", environment_id=one, code="touch started; sleep 1000"))
        await until_started(tools, one, "a call")
        [pid] = [pid for pid, line in server.processes() if line.endswith("serve --stdio")]
        os.kill(pid, signal.SIGTERM)
        # The call fails with an error, or the conversation ends.
        await asyncio.gather(running, return_exceptions=True)
    server.assert_nothing_left(within_s=STOP_S)
