# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""What programs in a guest can't reach, whatever they try, and what a rule opens."""

import json
import socket
import threading

import pytest

pytestmark = pytest.mark.outside("serves on this machine's loopback")

# The host, as guests know it.
HOST = "10.0.77.1"

PROBE = """
import json, socket, time
found = {}
for host, port in json.loads(TARGETS):
    start = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=30) as one:
            one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            found[f"{host} {port}"] = "answered" if one.recv(100) else "ended"
    except OSError:
        found[f"{host} {port}"] = "refused"
    assert time.monotonic() - start < 10, (host, port)
print(json.dumps(found))
"""


def own_addresses():
    """This machine's addresses, loopback aside."""
    found = set()
    for family, somewhere in ((socket.AF_INET, "192.0.2.9"), (socket.AF_INET6, "2000::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            try:
                one.connect((somewhere, 53))
                found.add(one.getsockname()[0])
            except OSError:
                pass
    return sorted(found)


async def probe(tools, made, targets):
    code = f"TARGETS = {json.dumps(targets)!r}\n{PROBE}"
    ran = await tools.call("execute", environment_id=made["environment_id"], code=code, timeout_seconds=200)
    assert ran["exit_code"] == 0, ran
    return json.loads(ran["stdout"])


@pytest.fixture
def listener():
    """A server on every address of this machine, which must hear of nobody."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        yield server


async def test_metadata_the_hosts_loopback_and_its_networks_are_out_of_reach(serve, listener):
    port = listener.getsockname()[1]
    places = [HOST, "169.254.169.254", "192.168.0.1", "10.0.0.1", "172.17.0.1", "100.100.100.200", "::ffff:169.254.169.254"]
    places += ["fd00:ec2::254", "64:ff9b::7f00:1", "224.0.0.1", "198.18.0.1", *own_addresses()]
    targets = [[place, number] for place in places for number in (80, port)]
    server = serve().start()
    async with server.client() as tools, tools.environment("python") as made:
        found = await probe(tools, made, targets)
        assert found == {f"{place} {number}": "refused" for place, number in targets}
        with pytest.raises(BlockingIOError):
            listener.accept()
        [listed] = (await tools.call("list_environments"))["environments"]
        # A guest without IPv6 refuses by itself what is IPv6.
        assert listed["egress_refused"] >= 2 * sum(":" not in place for place in places), listed
        assert listed["egress_refused_last"]
    assert "the network policy refused a guest" in server.output()
    # Twenty lines at once, and then few.
    assert server.output().count("the network policy refused a guest") < 30


async def test_a_rule_opens_what_it_says_and_an_environment_can_only_narrow_it(serve, listener):
    port = listener.getsockname()[1]
    listener.setblocking(True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        shut = other.getsockname()[1]
        server = serve(EGRESS=f"127.0.0.1:{port}", MAX_ENVIRONMENTS="3").start()
        targets = [[HOST, port], [HOST, shut]]

        async with server.client() as tools, tools.environment("python") as made:
            def serve_one():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(b"hello")

            threading.Thread(target=serve_one, daemon=True).start()
            assert await probe(tools, made, targets) == {f"{HOST} {port}": "answered", f"{HOST} {shut}": "refused"}
            for network in ("none", f"127.0.0.1:{shut}"):
                made = await tools.call("create_environment", runtime="python", network=network)
                assert await probe(tools, made, targets) == {f"{HOST} {port}": "refused", f"{HOST} {shut}": "refused"}
                await tools.call("destroy_environment", environment_id=made["environment_id"])
            wrong = await tools.raw("create_environment", runtime="python", network="forbid all")
            assert 'network: "forbid all" is no rule' in wrong.content[0].text
