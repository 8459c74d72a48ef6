# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as root before each installation of Debian packages, after a first line that defines WAS_KILLED.
# Updates the package lists: images contain none, so apt-get finds no package before. If an earlier installation was
# killed, completes it. If a package cannot be completed, apt-get says so in the next step.

# dpkg leaves files in this folder when it is killed, in whatever way.
if [ "$WAS_KILLED" = no ] && [ -z "$(ls /var/lib/dpkg/updates 2>/dev/null)" ]; then
  exec apt-get update -q
fi
# A configuration file is never asked about. Of the output, only errors are of interest.
force='--force-confdef --force-confold'
dpkg $force --configure -a >/dev/null
apt-get update -q || exit
# The packages that were being unpacked.
halves=$(dpkg-query -W -f '${db:Status-Status} ${db:Status-Eflag} ${binary:Package}\n' |
  sed -n 's/^half-installed [a-z]* //p; s/^[a-z-]* reinstreq //p')
if [ -n "$halves" ] || ! apt-get check -q >/dev/null 2>&1; then
  apt-get install -q -y --fix-broken --reinstall --no-install-recommends \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $halves ||
    { [ -z "$halves" ] || dpkg --force-remove-reinstreq --remove $halves; }
fi
exit 0
