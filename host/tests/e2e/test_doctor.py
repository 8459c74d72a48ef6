# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor accepts a working host, and reports what is wrong with others."""

import json
import os
import pty
import subprocess

import pytest

from server import BINARY, CALL_S, WITHOUT_KVM

pytestmark = pytest.mark.outside("hides programs and devices of this machine")


def doctor(server, *arguments, prefix=(), **variables):
    """The doctor's exit code and output."""
    command = [*prefix, BINARY, "doctor", *arguments]
    environment = server.variables() | variables
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CALL_S, check=False)
    assert ran.stderr == "", ran.stderr
    return ran.returncode, ran.stdout


def run_checks(server, *arguments, prefix=(), **variables):
    """The exit code, the report, and the checks by their names; no machine is booted."""
    code, printed = doctor(server, "--json", "--no-boot", *arguments, prefix=prefix, **variables)
    report = json.loads(printed)
    assert report["ok"] == (code == 0), report
    return code, report, {check["name"]: check for check in report["checks"]}


def test_a_working_host_boots_a_machine(serve):
    server = serve()
    code, printed = doctor(server, "--json")
    report = json.loads(printed)
    assert code == 0, printed
    assert report["boot"]["state"] == "ok"
    assert list(report["boot"]["stages_ms"]) == sorted(["open", "image", "disks", "boot", "command", "end"])
    assert report["boot"]["stages_ms"]["boot"] > 0
    assert {check["state"] for check in report["checks"] if check["needed"]} == {"ok"}
    server.assert_nothing_left()


def test_missing_requirements_are_reported_with_their_command(serve):
    server = serve()
    code, report, checks = run_checks(server, PATH="")
    assert code == 1
    assert (checks["QEMU"]["state"], checks["QEMU"]["needed"]) == ("missing", True)
    assert set(checks["QEMU"]["mend"]) == {"debian", "fedora", "arch"}
    assert checks["QEMU"]["mend"]["debian"] == "apt-get install qemu-system-x86"
    assert report["boot"]["state"] == "not tried"
    # Without --no-boot, the doctor reports the same and still boots no machine.
    code, printed = doctor(server, PATH="")
    assert code == 1
    assert "booted no machine: fix QEMU first" in printed
    assert "\x1b" not in printed


def test_a_missing_mkfs_is_reported(serve):
    # An empty folder hides the system's, for this process only.
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh"]
    code, _, checks = run_checks(serve(), prefix=hidden)
    assert (code, checks["mkfs.ext4"]["state"]) == (1, "missing")
    assert checks["mkfs.ext4"]["mend"]["arch"] == "pacman -S e2fsprogs"


def test_only_the_chosen_back_ends_requirements_are_needed(serve):
    code, report, checks = run_checks(serve(), "--backend", "krun", prefix=WITHOUT_KVM)
    assert code == 1
    assert "libkrun requires KVM" in report["backend"]["fault"]
    assert (checks["KVM guests"]["state"], checks["KVM guests"]["needed"]) == ("broken", True)
    assert not checks["QEMU"]["needed"]


def test_a_data_folder_that_others_can_write_to_is_reported(serve, tmp_path):
    tmp_path.chmod(0o777)
    folder = tmp_path / "scratch-v2"
    folder.mkdir()
    folder.chmod(0o777)
    code, _, checks = run_checks(serve(DATA_DIR=str(tmp_path)))
    assert (code, checks["data folder"]["state"]) == (1, "broken")
    assert "chmod go-w" in checks["data folder"]["found"]


def test_an_unreachable_registry_is_reported_with_advice(serve):
    nowhere = {f"IMAGE_{runtime}": "127.0.0.1:1/none/none:1" for runtime in ["PYTHON", "NODE", "SHELL"]}
    server = serve(**nowhere)
    code, printed = doctor(server, "--json")
    report = json.loads(printed)
    found = {check["name"]: check["found"] for check in report["checks"]}
    assert found["image shell"] == "127.0.0.1:1/none/none:1, not pulled yet"
    assert (code, report["boot"]["state"]) == (1, "failed")
    assert "127.0.0.1:1" in report["boot"]["reason"] and "./taskw images" in report["boot"]["hint"]
    server.assert_nothing_left()


def test_a_host_without_images_fails_the_check(serve, tmp_path):
    nowhere = {f"IMAGE_{runtime}": f"oci:{tmp_path}/none" for runtime in ["PYTHON", "NODE", "SHELL"]}
    code, _, checks = run_checks(serve(**nowhere))
    assert (code, checks["image shell"]["state"], checks["image shell"]["needed"]) == (1, "missing", True)


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_a_terminal_has_colours_unless_no_color_is_set(serve, no_colour, coloured):
    # The doctor's stderr is not a terminal, so no spinner is drawn.
    shown = shown_on_terminal(serve(), "stdout", NO_COLOR=no_colour)
    assert (b"\x1b[32mok" in shown) == coloured
    assert b"QEMU" in shown


def test_progress_is_shown_on_a_terminal_and_cleared_at_the_end(serve):
    shown = shown_on_terminal(serve(), "stderr")
    assert b"checking this host" in shown
    # At the end the line is cleared (ECMA-48, EL), and nothing follows.
    assert shown.endswith(b"\x1b[2K"), shown[-80:]


def shown_on_terminal(server, stream, **variables):
    """The doctor's output on one stream, which is a terminal. The other stream is discarded."""
    ours, theirs = pty.openpty()
    environment = server.variables() | {"TERM": "xterm"} | variables
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: theirs}
    process = subprocess.Popen([BINARY, "doctor", "--no-boot"], env=environment, stdin=theirs, **streams)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass
    os.close(ours)
    assert process.wait(CALL_S) == 0
    return shown
