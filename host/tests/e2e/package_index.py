# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""The package index that this machine's pip uses, for rules that allow guests to reach only that index."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request

# Prints pip's settings from its files, environment variables and defaults. pip has no public interface for defaults.
ASK_PIP = """
import json, ssl
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps({
    "url": options.index_url,
    "proxy": options.proxy or None,
    "certificates": options.cert or ssl.get_default_verify_paths().cafile,
}))
"""


class Index:
    """The index's `url`, the file of trusted `certificates` and the `proxy` URL. The last two can be None."""

    def __init__(self):
        asked = json.loads(subprocess.run([sys.executable, "-c", ASK_PIP], capture_output=True, check=True).stdout)
        self.url = asked["url"]
        self.certificates = asked["certificates"]
        self.proxy = asked["proxy"] or urllib.request.getproxies().get("https")

    def rules(self, *packages):
        """Rules that allow the index and the hosts from which pip downloads these packages."""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
        report = json.loads(subprocess.run([*command, *packages], capture_output=True, check=True).stdout)
        urls = [self.url, *(package["download_info"]["url"] for package in report["install"])]
        return ",".join(sorted({rule(urllib.parse.urlsplit(url)) for url in urls}))


def rule(url):
    return f"{url.hostname}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"
