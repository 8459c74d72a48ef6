# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs the file that is its argument as Python would run it if it were in the working directory. Only modules that every
# Python has already loaded are used, because a file in the working directory may have the name of any other.
def load(main):
    # Local names, because the code gets an empty module.
    import os
    import sys

    del sys.argv[0]
    path = sys.argv[0]
    folder = os.path.dirname(os.path.realpath(main["__file__"]))
    # With -P, -I or PYTHONSAFEPATH, Python does not search the script's folder, and so not the working directory either.
    if sys.path and sys.path[0] == folder:
        try:
            sys.path[0] = os.getcwd()
        except OSError:
            # The folder was removed.
            del sys.path[0]
    loader = type(main["__loader__"])
    kept = {name: main[name] for name in ("__name__", "__builtins__")}
    main.clear()
    main.update(kept, __file__=path, __doc__=None, __package__=None, __spec__=None, __cached__=None)
    main["__loader__"] = loader("__main__", path)
    try:
        with open(path, "rb") as file:
            source = file.read()
        exec(compile(source, path, "exec", dont_inherit=True), main)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as fault:
        # The traceback starts with the code, not with this file. Python itself would also end with status 1.
        shown = fault.__traceback__.tb_next
        sys.excepthook(type(fault), fault.with_traceback(shown), shown)
        status = 1
    else:
        return
    sys.exit(status)


load(globals())
