// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// Runs in the guest as the sandbox user after an installation by npm was killed, after a first line that defines
// BEGAN and ENDED, the seconds since 1970 between which that installation ran. Removes the packages that it was unpacking,
// and those that it had moved away: npm takes the former for complete, and fails at the latter.
(async () => {
  const fs = await import("node:fs");
  const home = "/home/sandbox";
  const changedMeanwhile = (path) => {
    const seconds = fs.statSync(path).ctimeMs / 1000;
    return BEGAN <= seconds && seconds <= ENDED;
  };
  const read = (path) => {
    try {
      return JSON.parse(fs.readFileSync(path, "utf8"));
    } catch {
      return {};
    }
  };
  // npm writes the lock file at the end of an installation.
  const complete = read(`${home}/package-lock.json`).packages ?? {};
  const remove = (path) => fs.rmSync(path, { recursive: true, force: true });
  const clean = (folder) => {
    if (!fs.existsSync(`${home}/${folder}`)) return;
    const entries = fs.readdirSync(`${home}/${folder}`, { withFileTypes: true });
    for (const entry of entries.filter((entry) => entry.isDirectory())) {
      const key = `${folder}/${entry.name}`;
      const path = `${home}/${key}`;
      if (/^\..+-[A-Za-z0-9_-]{8}$/.test(entry.name)) {
        if (changedMeanwhile(path)) remove(path);
      } else if (entry.name.startsWith("@")) {
        clean(key);
      } else if (!entry.name.startsWith(".")) {
        const whole = complete[key] && complete[key].version === read(`${path}/package.json`).version;
        if (!whole && changedMeanwhile(path)) {
          remove(path);
        } else {
          clean(`${key}/node_modules`);
        }
      }
    }
  };
  clean("node_modules");
  // npm's own list of the installed packages.
  remove(`${home}/node_modules/.package-lock.json`);
})();
