# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as root after an installation of rpm packages was killed. Removes the locks of processes that no longer
# run, and rebuilds the data base if rpm cannot read it.

rm -f /var/cache/dnf/*.pid /var/lib/dnf/*.pid /run/dnf/*.pid /var/run/yum.pid /run/zypp.pid
command -v rpm >/dev/null || exit 0
if ! rpm --query --all >/dev/null 2>&1; then
  # The locks of Berkeley DB, which older versions of rpm use.
  rm -f "$(rpm --eval '%{_dbpath}')"/__db.*
  rpm --rebuilddb
fi
exit 0
