# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The commands other than `serve`: `run`, which needs no server, those that talk to a server, and their help."""

import json
import re
import shutil
import signal
import subprocess
import time

import pytest

from repositories import reconfigure
from server import BINARY, CALL_S

pytestmark = pytest.mark.outside("runs the program here")


def waggle(server, *arguments, **options):
    return subprocess.run(
        [BINARY, *arguments],
        **({"env": server.variables(), "capture_output": True, "timeout": CALL_S, "text": True} | options),
        check=False,
    )


def started(server, tmp_path, code, *arguments):
    """Starts a run and waits for its program's first line; returns the process and the line."""
    (tmp_path / "script.py").write_text(code)
    command = [BINARY, "run", "python", tmp_path / "script.py", *arguments]
    process = subprocess.Popen(
        command, env=server.variables(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, process.stdout.readline()


def test_a_run_passes_arguments_outputs_and_exit_code_and_leaves_nothing(serve, tmp_path):
    server = serve()
    script = tmp_path / "it's a script.py"
    script.write_text("import sys; print(sys.argv[1:]); print(input(), file=sys.stderr); sys.exit(7)")
    ran = waggle(server, "run", "python", script, "-i", "--", "--flag", "a b", input="typed\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "['--flag', 'a b']\n", "typed\n")
    server.assert_nothing_left()


def test_a_run_takes_its_program_from_standard_input_and_its_image_from_a_flag(serve):
    server = serve()
    image = server.settings["IMAGE_NODE"]
    ran = waggle(server, "run", "shell", "--image", image, input="command -v node && exit 3")
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout.strip().endswith("/node")


def test_a_run_starts_in_the_working_directory_of_its_image(serve, tmp_path):
    server = serve()
    layout = shutil.copytree(server.settings["IMAGE_PYTHON"].removeprefix("oci:"), tmp_path / "image")
    reconfigure(layout, WorkingDir="/usr/lib")
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(os.getcwd(), sys.argv)")
    ran = waggle(server, "run", "python", script, "--image", f"oci:{layout}", "--", "a")
    assert (ran.returncode, ran.stdout) == (0, "/usr/lib ['/home/sandbox/script.py', 'a']\n"), ran.stderr


def test_output_arrives_while_the_program_runs(serve, tmp_path):
    server = serve()
    process, first = started(
        server, tmp_path, "import time\nprint('first', flush=True)\ntime.sleep(600)", "--timeout", "30s"
    )
    try:
        # The program has not ended: it sleeps for ten minutes.
        assert (first, process.poll()) == (b"first\n", None)
        assert process.wait(CALL_S) == 124
        assert b"timed out" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
    server.assert_nothing_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_and_leaves_nothing(serve, tmp_path, number, code):
    server = serve()
    process, first = started(server, tmp_path, "import time\nprint('first', flush=True)\ntime.sleep(600)")
    assert first == b"first\n"
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(CALL_S) == code
    assert time.monotonic() - began < 20
    server.assert_nothing_left()


def test_a_run_ends_when_its_output_pipe_is_closed(serve, tmp_path):
    server = serve()
    process, _ = started(server, tmp_path, "while True: print('x' * 1000, flush=True)")
    process.stdout.close()
    assert process.wait(CALL_S) == 141
    server.assert_nothing_left()


def test_a_signal_ends_a_run_whose_output_is_not_read(serve, tmp_path):
    server = serve()
    process, _ = started(server, tmp_path, "while True: print('x' * 1000, flush=True)")
    # By then the pipe is full, and the program waits.
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(CALL_S) == 143
    server.assert_nothing_left()


async def test_ps_and_exec_work_on_environments_of_other_clients(server):
    url = ["--url", server.url]
    async with server.client() as tools, tools.environment("shell", name="hive") as made:
        one = made["environment_id"]
        listed = waggle(server, "ps", *url)
        assert listed.returncode == 0, listed.stderr
        assert one in listed.stdout and "hive" in listed.stdout
        listed = json.loads(waggle(server, "ps", "--json", *url).stdout)
        assert [environment["environment_id"] for environment in listed["environments"]] == [one]

        ran = waggle(server, "exec", one, *url, "--", "sh", "-c", "echo \"it's $0\"; echo e >&2; exit 5", "a b")
        assert (ran.returncode, ran.stdout, ran.stderr) == (5, "it's a b\n", "e\n")
        ran = waggle(server, "exec", one, *url, "--timeout", "1", "--", "sleep", "60")
        assert (ran.returncode, ran.stdout) == (124, ""), ran.stderr
        unknown = waggle(server, "exec", "123e4567-e89b-42d3-a456-426614174000", *url, "--", "true")
        assert unknown.returncode == 1
        assert "123e4567" in unknown.stderr


async def test_logs_say_why_a_machine_failed(server):
    url = ["--url", server.url]
    async with server.client() as tools, tools.environment("shell", name="hive") as made:
        one = made["environment_id"]
        # Output to the console is shown without control sequences.
        code = "printf 'a\\033[2Jline\\n' | tee /dev/console >/dev/null"
        await tools.call("execute", environment_id=one, code=code)
        told = waggle(server, "logs", one, *url)
        assert told.returncode == 0, told.stderr
        about, *_ = told.stdout.splitlines()
        assert about == f"{one}  shell  running  hive"
        for what in ["preparing the image", "booting the machine", "running"]:
            assert any(line.endswith(f"Z  {what}") for line in told.stdout.splitlines()), told.stdout
        assert "\x1b" not in told.stdout

        server.signal(server.machines(), signal.SIGKILL)
        while (log := json.loads(waggle(server, "logs", one, "--json", *url).stdout))["status"] != "error":
            time.sleep(0.05)
        assert log["events"][-1]["what"].startswith("the machine is gone: "), log
        assert "SIGKILL" in log["events"][-1]["what"]
    gone = waggle(server, "logs", one, *url)
    assert gone.returncode == 1
    assert f"environment {one} has been destroyed" in gone.stderr


def test_manual_pages_and_completions_cover_the_command_line(serve, tmp_path):
    server = serve()
    assert waggle(server, "man", tmp_path).returncode == 0
    pages = {page.name for page in tmp_path.iterdir()}
    assert {"waggle.1", "waggle-serve.1", "waggle-run.1", "waggle-logs.1", "waggle-image-pull.1"} <= pages
    serve_page = (tmp_path / "waggle-serve.1").read_text()
    assert "WAGGLE_LISTEN_ADDR" in serve_page and "Examples:" in serve_page
    # This machine's settings must not appear in a page.
    assert server.settings["LISTEN_ADDR"] not in serve_page
    script = waggle(server, "completions", "bash").stdout
    complete = f"{script}\nCOMP_WORDS=(waggle run p); COMP_CWORD=2; _waggle waggle p run; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["python"], done
    for shell, word in [("zsh", "#compdef waggle"), ("fish", "complete -c waggle")]:
        assert word in waggle(server, "completions", shell).stdout


def test_the_help_of_every_command_has_an_example(serve):
    server = serve()
    listed = waggle(server, "--help").stdout.split("Commands:")[1].split("Options:")[0]
    commands = re.findall(r"^  (\w+)", listed, re.MULTILINE)
    assert {"serve", "run", "ps", "exec", "logs", "doctor", "image", "completions"} <= set(commands)
    for command in set(commands) - {"help", "version", "licences"}:
        assert "Examples:\n  " in waggle(server, command, "--help").stdout, command


def test_an_unreachable_server_is_reported_with_advice(serve):
    server = serve()
    ran = waggle(server, "ps", "--url", server.url)
    assert ran.returncode == 1
    assert server.url in ran.stderr and "waggle serve" in ran.stderr
