# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as the sandbox user, after two first lines that define PACKAGES, and KILLED: the seconds since 1970
# between which an earlier installation ran that was killed, or None.
import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

VENV = "/home/sandbox/venv"
VENV_PYTHON = os.path.join(VENV, "bin", "python3")
# Exists while the environment is being made.
MAKING = os.path.join(VENV, ".waggle-making")
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
SITES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})

NO_PIP = """\
pip not found, and this image's Python cannot make it. In an image with a package manager, install_packages with \
system: true and the package python3-pip installs it.
"""


def succeeds(*command):
    """Whether a command that shows nothing succeeds."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(command, **quiet).returncode == 0


def is_venv():
    return os.path.exists(VENV_PYTHON) and os.path.exists(os.path.join(VENV, "pyvenv.cfg"))


def is_managed_externally():
    """PEP 668: a marker beside the standard library says that pip must not touch this Python."""
    return os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))


def remove_half_made_venv():
    """Removes the environment that an earlier installation did not finish making."""
    if os.path.lexists(MAKING) and not os.path.islink(VENV):
        shutil.rmtree(VENV)


def repair(began, ended):
    """Removes the packages that look as if complete, and that a killed installation left between these times."""
    home = os.path.expanduser("~")
    own = [glob.glob(f"{home}/{folder}/lib/*/site-packages") for folder in ["venv", ".local"]]
    for site in {*SITES, *own[0], *own[1]}:
        # pip renames packages like this before it removes them.
        left = glob.glob(os.path.join(site, "~*"))
        # pip writes the record last.
        infos = glob.glob(os.path.join(site, "*.dist-info"))
        left += [info for info in infos if not os.path.exists(os.path.join(info, "RECORD"))]
        for path in left:
            if began <= os.lstat(path).st_ctime <= ended:
                shutil.rmtree(path, ignore_errors=True)


def make_venv():
    """Makes an environment in which this Python's packages, including its pip, stay visible."""
    # Nothing is written beside a folder's other content: it is not ours to remove.
    os.makedirs(VENV, exist_ok=True)
    if not os.listdir(VENV):
        open(MAKING, "x").close()
    # Unpacking a second pip would take most of a minute under emulation.
    bare = ["--without-pip"] if importlib.util.find_spec("pip") else []
    made = subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", *bare, VENV])
    if made.returncode != 0:
        sys.exit(made.returncode)
    if sys.prefix != sys.base_prefix:
        # The new environment sees the packages of the base only.
        version = "python{}.{}".format(*sys.version_info)
        with open(os.path.join(VENV, "lib", version, "site-packages", "image_venv.pth"), "w") as links:
            links.writelines(f"import site; site.addsitedir({site!r})\n" for site in SITES)
    if os.path.exists(MAKING):
        os.remove(MAKING)


def launch_from(python, *arguments):
    """Makes `pip` and `pip3` beside this Python, for commands that are typed, if there is none."""
    for name in ["pip", "pip3"]:
        path = os.path.join(os.path.dirname(sys.executable), name)
        if not os.path.lexists(path):
            with open(path, "w") as program:
                program.write(f"#!{python}\nimport runpy, sys; sys.argv[1:1] = {[*arguments]!r}; ")
                program.write('runpy.run_module("pip", run_name="__main__", alter_sys=True)\n')
            os.chmod(path, 0o755)


def pip_command():
    """The command with which pip installs for this Python."""
    in_venv = sys.prefix != sys.base_prefix
    if importlib.util.find_spec("pip"):
        if in_venv and os.access(os.path.dirname(sys.executable), os.W_OK):
            launch_from(sys.executable)
        return [sys.executable, "-m", "pip", "install"]
    if in_venv and succeeds(BASE_PYTHON, "-m", "pip", "--python", sys.executable, "--version"):
        # The pip of the base can install for another Python, if it is not older than 22.3.
        launch_from(BASE_PYTHON, "--python", sys.executable)
        return [BASE_PYTHON, "-m", "pip", "--python", sys.executable, "install"]
    if in_venv and shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    user = [] if in_venv or os.access(SITES[0], os.W_OK) else ["--user"]
    if not succeeds(sys.executable, "-m", "ensurepip", "--default-pip", *user):
        sys.exit(NO_PIP)
    return [sys.executable, "-m", "pip", "install"]


def needs_own_venv():
    """Whether pip cannot or must not install for this Python."""
    if sys.prefix == sys.base_prefix:
        return is_managed_externally()
    return not all(os.access(site, os.W_OK) for site in SITES)


def main():
    if sys.argv[1:] != ["chosen"]:
        remove_half_made_venv()
        if KILLED:
            repair(*KILLED)
        if not os.path.exists(sys.executable):
            # This Python was that of a half-made environment, which was removed.
            os.execvp("python3", ["python3", __file__])
        if not is_venv() and needs_own_venv():
            make_venv()
        python = VENV_PYTHON if is_venv() else sys.executable
        if not os.path.samefile(os.path.dirname(python), os.path.dirname(sys.executable)):
            os.execv(python, [python, __file__, "chosen"])
    command = pip_command()
    os.execvp(command[0], [*command, *PACKAGES])


main()
