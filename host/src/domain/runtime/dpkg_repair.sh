# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as root after an installation of Debian packages was killed. Completes that installation, and updates
# the package lists as each installation does. If a package cannot be completed, apt-get says so in the next step.

# No output but errors is of interest; a configuration file is never asked about.
dpkg --force-confdef --force-confold --configure -a >/dev/null
apt-get update -q || exit
if [ -n "$(dpkg --audit)" ] || ! apt-get check -q >/dev/null 2>&1; then
  apt-get install -q -y --fix-broken --no-install-recommends -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold
fi
exit 0
