# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The rates at which a guest's programs make connections and lookups."""

from repositories import HOST
from test_names import ASK
from test_network import LOOPBACK, run

FLOOD = """
from concurrent.futures import ThreadPoolExecutor

def repeated(action, expected):
    end, done = time.monotonic() + 4, 0
    while time.monotonic() < end:
        done += attempt(action) == expected
    return done

with ThreadPoolExecutor(32) as pool:
    connects = [pool.submit(repeated, lambda: ask(HOST, PORT, b"bee"), "hello") for _ in range(32)]
    connects = sum(one.result() for one in connects)
    lookups = [pool.submit(repeated, lambda: ask_udp("bee.test", HOST), [0, ADDRESS]) for _ in range(32)]
    print(json.dumps([connects, sum(one.result() for one in lookups)]))
"""


async def test_a_flood_of_connections_and_lookups_is_slowed_down(serve, peers):
    listener, address = peers("greet"), "198.41.0.4"
    rates = {"EGRESS_FLOWS_PER_SECOND": "5", "EGRESS_LOOKUPS_PER_SECOND": "5"}
    server = serve(EGRESS=f"{LOOPBACK}:{listener.port}, bee.test", **rates)
    server.set_hosts(bee=address)
    async with server.start().client() as tools, tools.environment("python") as made:
        code = f"HOST, PORT, ADDRESS = {HOST!r}, {listener.port}, {address!r}\n{ASK}{FLOOD}"
        # A bucket of 25 tokens, 5 tokens for each of 4 seconds, and 10 attempts that wait at the end; under emulation
        # some attempts are still on their way.
        connects, lookups = await run(tools, made, code)
        assert 35 <= connects <= 65 and 35 <= lookups <= 65, (connects, lookups)
        assert len(listener.heard()) == connects
        [listed] = (await tools.call("list_environments"))["environments"]
        assert listed["egress_refused"] > 100, listed
        assert listed["egress_refused_last"] == "a lookup beyond the rate of 5 per second"
        # After a pause, programs connect as before.
        assert await run(tools, made, f"time.sleep(2); print(json.dumps(ask({HOST!r}, {listener.port}, b'bee')))") == "hello"
    assert 0 < server.output().count("a guest exceeded a rate of its network") <= 22
