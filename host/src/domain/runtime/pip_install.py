# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as the sandbox user, after a first line that defines PACKAGES.
import importlib.util
import os
import subprocess
import sys
import sysconfig

VENV = "/home/sandbox/venv"
venv_python = os.path.join(VENV, "bin", "python3")


def managed_externally():
    """PEP 668: a marker beside the standard library says that pip must not touch this Python."""
    return os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))


python = sys.executable
if os.path.exists(venv_python):
    python = venv_python
elif managed_externally():
    # The image's packages, including its pip, stay visible in the virtual environment. Unpacking a second pip would
    # take most of a minute under emulation.
    bare = ["--without-pip"] if importlib.util.find_spec("pip") else []
    made = subprocess.run([python, "-m", "venv", "--system-site-packages", *bare, VENV])
    if made.returncode != 0:
        sys.exit(made.returncode)
    python = venv_python
os.execv(python, [python, "-m", "pip", "install", *PACKAGES])
