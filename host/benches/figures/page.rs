// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The words around the tables of docs/benchmarks/calls.md.

use crate::host::processors;

/// What was measured where.
pub(crate) fn head() -> String {
    format!(
        "# Calls, files and starts\n\n\
         `./taskw bench` measures all of this and writes this page; `./taskw bench -- machine`, `sshd` and `local` print \
         one part.\n\nThis run: {}. Medians unless a row says otherwise; what is compared was measured in \
         turn in the same run, because the machine is shared and its speed varies from minute to minute.\n",
        processors()
    )
}

/// What the figures do and do not show.
pub(crate) const FOOT: &str = "
## What the numbers mean

- The bare machine has waggle's own QEMU command line without the scratch disk, and an init that moves bytes over one
  vsock connection and does nothing else (`guest-agent/examples/raw_vsock.rs`). \"Init\" is when its first words are on the
  console.
- `execute` less spawn to exit is what waggle adds to a command's own time: client and server (both in the benchmark's
  process, over HTTP on loopback), the link, and in the guest the script's file, the control group and the fork up to
  where the agent's own clock starts.
- A file's way is longer than the raw stream's: a worker process with the sandbox user's identity is in it, and a real
  file in the guest.
- sshd runs beside the agent in the same machine, without the room, the filter and the control groups that the agent's
  commands get; it has no PAM, and answers on vsock through `socat`, which hands the connection itself over. `ssh` gets its
  connection handed over, too, and the kept one is used by its own protocol (`PROTOCOL.mux`) without starting a program
  a call: that is sshd at its quickest. Files go through `cat`, which is quicker than SFTP. A kill over SSH is a second
  command, `kill -s KILL` for the process group; it misses what has left the group, which waggle's does not.
- Without a machine, agent and commands are root's, without a room: it compares protocol with protocol.

- An aim is what the project set itself; a figure beyond it has not been reached yet. On an emulated processor, which QEMU's
  machines have where there is no KVM that boots guests, starting a process takes tens of milliseconds and each wake-up
  counts: that is most of what `execute` and files lack.

They do not show how many machines fit on a host, what KVM gives where there was none, nor what happens under memory
pressure.
";
