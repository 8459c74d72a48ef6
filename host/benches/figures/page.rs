// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The text around the table of docs/benchmarks/calls.md.

use crate::host::processors;

/// The title, and the machine of this run.
pub(crate) fn head() -> String {
    format!(
        "# Calls, files and starts\n\n\
         `./taskw bench` measures all of this and writes this page.\n\n\
         This run: {}. Medians unless a row says otherwise; compared values were measured in turn\n\
         in the same run, because the machine is shared and its speed varies from minute to minute.\n",
        processors()
    )
}

/// The meaning of the figures, and their limits.
pub(crate) const FOOT: &str = "
## What the numbers mean

- The bare machine has waggle's own QEMU command line without the scratch disk, and an init that moves bytes over the
  port of the call link and does nothing else (`guest-agent/examples/raw_port.rs`). \"Init\" is the time until its
  first line on the console.
- `execute` minus the time from spawn to exit is the time that waggle adds to a command's own time. The client and the
  server (both in the benchmark's process, over HTTP on loopback) and the link need this time, and in the guest the
  script file, the control group and the fork, until the agent's own clock starts.
- A file takes longer than the raw stream, because it involves a worker process that runs as the sandbox user, and a
  real file in the guest.
- The aims are the project's own; some figures do not reach their aim yet. Without a usable KVM, QEMU emulates the
  processor. Then starting a process takes tens of milliseconds, and each wake-up is slow, which explains most of the
  gap to the aims for `execute` and files.

The figures do not show how many machines fit on a host, how much faster a host without KVM would be with KVM, or
the behaviour under memory pressure.
";
