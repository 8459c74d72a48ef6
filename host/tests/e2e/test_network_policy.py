# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Destinations that programs in a guest cannot reach, and destinations that a rule opens."""

import json

import pytest
from repositories import HOST

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


# Runs the server, the arguments, in a network of its own: the host has the public address 11.22.33.44, and a NAT64 of its
# network leads to itself. Servers listen on two ports of all its addresses.
BEHIND_NAT64 = """
ip link set lo up && ip address add 11.22.33.44/32 dev lo
ip -6 route add local 64:ff9b::/96 dev lo && ip -6 route add 2000::/3 dev lo
python3 -c '
import socketserver
class Greet(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(b"hello")
class Server(socketserver.ThreadingTCPServer): address_family = 10
import threading
threading.Thread(target=Server(("::", 8081), Greet).serve_forever).start()
Server(("::", 8080), Greet).serve_forever()
' &
"$@"
status=$?; kill $!; exit $status
"""


async def probe(tools, made, targets):
    code = f"TARGETS = {json.dumps(targets)!r}\n{PROBE}"
    ran = await tools.call("execute", environment_id=made["environment_id"], code=code, timeout_seconds=200)
    assert ran["exit_code"] == 0, ran
    return json.loads(ran["stdout"])


async def test_refused_connections_are_counted_once_and_logged_up_to_a_limit(serve, peers):
    # Listens on every address of the host; it must receive no connection.
    listener = peers("greet", "0.0.0.0")
    v4, v6 = peers.own_addresses("192.0.2.9", "2000::1")
    asked = [HOST, "169.254.169.254", "192.168.0.1", "10.0.0.1", "172.17.0.1", "100.100.100.200", "198.18.0.1"]
    asked += ["::ffff:169.254.169.254", *([v4] if v4 else [])]
    # Connections to these reach the host only if the host has IPv6; otherwise the guest refuses them.
    of_ipv6 = ["fd00:ec2::254", "64:ff9b::7f00:1", *([v6] if v6 else [])]
    # Connections to these never leave the guest.
    kept = ["0.0.0.0", "::", "224.0.0.1"]
    targets = [[place, port] for place in asked + of_ipv6 + kept for port in (80, listener.port)]
    server = serve().start()
    async with server.client() as tools, tools.environment("python") as made:
        found = await probe(tools, made, targets)
        assert found == {f"{place} {port}": "refused" for place, port in targets}
        assert listener.heard() == []
        [listed] = (await tools.call("list_environments"))["environments"]
        heard_of = asked + of_ipv6 if v6 else asked
        assert listed["egress_refused"] == 2 * len(heard_of), listed
        assert listed["egress_refused_last"] == f"{heard_of[-1]} port {listener.port}"
        # The log gets 20 lines at once, and then one every 30 s.
        for _ in range(3):
            await probe(tools, made, targets)
    assert "the network policy refused a guest" in server.output()
    assert server.output().count("the network policy refused a guest") < 30


async def test_a_rule_opens_what_it_says_and_an_environment_can_only_narrow_it(serve, peers):
    port, shut = peers("greet").port, peers("greet").port
    server = serve(EGRESS=f"127.0.0.1:{port}", MAX_ENVIRONMENTS="3").start()
    targets = [[HOST, port], [HOST, shut]]
    async with server.client() as tools, tools.environment("python") as made:
        assert await probe(tools, made, targets) == {f"{HOST} {port}": "answered", f"{HOST} {shut}": "refused"}
        for network in ("none", f"127.0.0.1:{shut}"):
            made = await tools.call("create_environment", language="python", network=network)
            assert await probe(tools, made, targets) == {f"{HOST} {port}": "refused", f"{HOST} {shut}": "refused"}
            await tools.call("destroy_environment", environment_id=made["environment_id"])
        wrong = await tools.raw("create_environment", language="python", network="forbid all")
        assert 'network: invalid rule "forbid all"' in wrong.content[0].text


@pytest.mark.outside("the server has a network of its own here")
async def test_public_never_leads_to_the_host_through_nat64(serve):
    own = "64:ff9b::b16:212c"
    server = serve(EGRESS=f"public, [{own}]:8081")
    server.through = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", BEHIND_NAT64, "sh"]
    async with server.conversation() as tools, tools.environment("python") as made:
        found = await probe(tools, made, [[own, 8081], [own, 8080], ["11.22.33.44", 8080]])
        # The rule for the address shows that the address leads to the host.
        assert found == {f"{own} 8081": "answered", f"{own} 8080": "refused", "11.22.33.44 8080": "refused"}
        [listed] = (await tools.call("list_environments"))["environments"]
        assert (listed["egress_refused"], listed["egress_refused_last"]) == (2, "11.22.33.44 port 8080")
