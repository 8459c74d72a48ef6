# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and variables that a client chooses for its environment."""

MIB = 1 << 20

# Prints the processors, the memory in MiB and the disk in MiB that programs see.
SIZES = """
import os
memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
disk = os.statvfs("/home/sandbox")
print(os.cpu_count(), memory, disk.f_blocks * disk.f_frsize >> 20)
"""


async def test_a_client_chooses_the_size_and_the_variables_of_its_environment(serve):
    settings = {"RUNTIME_PYTHON_INSTALL_COMMAND": "/usr/bin/printenv", "RUNTIME_SHELL_INSTALL_COMMAND": "/usr/bin/printenv"}
    server = serve(MAX_CPUS="2", MAX_MEMORY_MB="640", MAX_ENVIRONMENTS="2", **settings).start()
    async with server.client() as tools:
        for sizes, expected in [
            ({"cpus": 3}, "cpus: 3 is invalid; must be an integer from 1 to 2, the maximum of this server; its operator can "
             "raise the maximum with WAGGLE_MAX_CPUS"),
            ({"memory_mb": 641.0}, "memory_mb: 641 is invalid; must be an integer from 128 to 640"),
            ({"memory_mb": "64"}, "memory_mb: 64 is invalid; must be an integer from 128 to 640"),
            ({"disk_mb": 4097}, "disk_mb: 4097 is invalid; must be an integer from 64 to 4096"),
            ({"cpus": "many"}, 'invalid argument "cpus": must be a number'),
            ({"environment": {"PATH": "/tmp"}}, "environment: PATH must not be set"),
            ({"environment": {"1x": ""}}, 'environment: invalid name "1x"'),
            ({"environment": {"A": "x" * 65536}}, "environment: the names and values have 65537 bytes"),
        ]:
            assert expected in await tools.refusal("create_environment", language="python", **sizes)
        assert (await tools.call("list_environments"))["count"] == 0
        variables = {"GREETING": "a 'b' $c\nä", "PORT": 80, "https_proxy": "http://proxy.example", "LD_LIBRARY_PATH": "/x"}
        sizes = {"cpus": "2", "memory_mb": 640.0, "disk_mb": 128}
        async with tools.environment("python", environment=variables, **sizes) as made:
            one = made["environment_id"]
            assert [made[name] for name in sizes] == [2, 640, 128]
            [listed] = (await tools.call("list_environments"))["environments"]
            assert [listed[name] for name in sizes] == [2, 640, 128]
            ran = await tools.call("execute", environment_id=one, code=SIZES)
            cpus, memory, disk = (int(word) for word in ran["stdout"].split())
            assert cpus == 2 and 560 < memory <= 640 and 90 < disk <= 128, ran

            code = 'printf "%s|" "$GREETING" "$PORT" "$OWN"; echo $HOME'
            own = {"PORT": "81", "OWN": "x"}
            ran = await tools.call("execute", environment_id=one, language="shell", code=code, environment=own)
            assert ran["stdout"] == "a 'b' $c\nä|81|x|/home/sandbox\n", ran
            # The variables of one call end with it.
            ran = await tools.call("execute", environment_id=one, language="shell", code=code)
            assert ran["stdout"] == "a 'b' $c\nä|80||/home/sandbox\n", ran
            wrong = await tools.refusal("execute", environment_id=one, code="1", environment={"B": "x" * 65500})
            assert "together with the environment's own, the call has 5 variables" in wrong

            ran = await tools.call("install_packages", environment_id=one, packages="PORT LD_LIBRARY_PATH")
            assert (ran["exit_code"], ran["stdout"]) == (0, "80\n/x\n"), ran
            # Root does not get variables that can name code.
            ran = await tools.call("install_packages", environment_id=one, packages="https_proxy", system=True)
            assert (ran["exit_code"], ran["stdout"]) == (0, "http://proxy.example\n"), ran
            for name in ("LD_LIBRARY_PATH", "GREETING"):
                ran = await tools.call("install_packages", environment_id=one, packages=name, system=True)
                assert (ran["exit_code"], ran["stdout"]) == (1, ""), ran
        # Without a choice, the environment has the server's defaults.
        async with tools.environment("shell") as made:
            assert [made[name] for name in sizes] == [1, 512, 4096]
    # The values may be secrets.
    assert "proxy.example" not in server.output()
