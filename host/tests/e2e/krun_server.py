# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A server with libkrun on this machine. KVM must run guests here."""

from server import Server


class KrunProcesses:
    """Finds the processes of a server's machines, with libkrun."""

    def machines(self):
        return self._of_machines(lambda threads: threads > 1)

    def runners(self):
        return self._of_machines(lambda threads: threads == 1)

    def _of_machines(self, which):
        """Selects processes by their number of threads: a machine has several, its runner has one."""
        pids = [pid for pid, line in self.processes() if "runner machine" in line]
        threads = self.shell("\n".join(f"ls /proc/{pid}/task | wc -l" for pid in pids)).split()
        return [pid for pid, count in zip(pids, threads) if which(int(count))]


class KrunServer(KrunProcesses, Server):
    def __init__(self, **settings):
        super().__init__(**{"BACKEND": "krun"} | settings)
