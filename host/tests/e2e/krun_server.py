# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""A server with libkrun on this machine, whose KVM has to run guests."""

from server import ROOT, Server


class KrunProcesses:
    """How a server's processes show its machines, with libkrun."""

    def machines(self):
        return self._of_machines(lambda threads: threads > 1)

    def helpers(self):
        return []

    def runners(self):
        return self._of_machines(lambda threads: threads == 1)

    def _of_machines(self, which):
        """Of the two processes of a machine, the one that has threads is the machine and the other its runner."""
        pids = [pid for pid, line in self.processes() if "runner machine" in line]
        threads = self.shell("\n".join(f"ls /proc/{pid}/task | wc -l" for pid in pids)).split()
        return [pid for pid, count in zip(pids, threads) if which(int(count))]


class KrunServer(KrunProcesses, Server):
    def __init__(self, **settings):
        super().__init__(**{"BACKEND": "krun", "FIRMWARE": str(ROOT / "target/firmware")} | settings)
