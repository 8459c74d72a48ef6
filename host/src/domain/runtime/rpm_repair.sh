# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as root after an installation of rpm packages was killed. Removes the locks of processes that no
# longer run and half-written lists of packages, and makes the data bases of rpm and dnf usable.

rm -f /var/lib/dnf/*.pid /run/dnf/*.pid /var/run/yum.pid /run/zypp.pid
# Package managers fetch the lists again.
rm -rf /var/cache/dnf/* /var/cache/libdnf5/* /var/cache/yum/* /var/cache/zypp/raw /var/cache/zypp/solv
if command -v dnf >/dev/null && ! dnf --quiet history >/dev/null 2>&1; then
  # Only dnf's list of past transactions.
  rm -f /var/lib/dnf/history.sqlite*
fi
command -v rpm >/dev/null || exit 0
database=$(rpm --eval '%{_dbpath}')
if ! rpm --query --all >/dev/null 2>&1; then
  # The locks of Berkeley DB, which older versions of rpm use.
  rm -f "$database"/__db.*
  if ! rpm --rebuilddb && [ "$(wc -c <"$database/rpmdb.sqlite")" -le 16384 ]; then
    # The first installation of all was killed while it made the data base; it contains no package.
    rm -f "$database"/rpmdb.sqlite*
  fi
fi
exit 0
