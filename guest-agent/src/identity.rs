// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The identity of the machine, as users see it: the host name, the kernel's boot id and the machine id.
//!
//! The agent draws the identity after the host's welcome, and the sandbox's init process applies it before it starts
//! the first command. Until then the machine has none, so that its memory may be copied.
//!
//! The host name and the boot id are the kernel's, and an error ends the start. The other parts are files in `/etc`,
//! which the image controls. If the image makes one impossible, for example with a folder of that name, the agent only
//! reports it.

mod image_folder;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    unistd::sethostname,
};
use serde::{Deserialize, Serialize};

use self::image_folder::{ImageFolder, read_file};
use crate::{
    console::{report, with_cause},
    mounts::HARMLESS,
    random::{hex, random_uuid},
    step::{StepFault, WithStep},
};

/// The file in which the kernel shows its boot id. The kernel's own id is the same in all copies of a machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file that is mounted over [`BOOT_ID`], in a folder where only the kernel and the agent have created files. It is
/// removed at once, so that only the read-only mount leads to it.
const BOOT_ID_SOURCE: &str = "/dev/.boot_id";

/// Permissions of the ids: everyone can read them.
const ID_MODE: u32 = 0o444;

const HOSTS_MODE: u32 = 0o644;

/// The lines of a hosts file that every machine needs.
const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// See the module's documentation. The sandbox receives it as its first message.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Identity {
    hostname: String,
    boot_id: [u8; 16],
    machine_id: [u8; 16],
}

impl Identity {
    /// Draws the ids; systemd's machine ids are UUIDs, too. The kernel's random number generator must have the host's
    /// random bytes.
    pub(crate) fn draw(hostname: &str) -> io::Result<Self> {
        Ok(Self { hostname: hostname.to_owned(), boot_id: random_uuid()?, machine_id: random_uuid()? })
    }

    /// Gives the identity to the namespaces and the root of this process. The process must be root. In a copy of
    /// another machine, `former` is the identity of that machine, and files that users have changed since are kept.
    pub(crate) fn apply(&self, boot_id: &mut BootIdFile, former: Option<&Self>) -> Result<(), StepFault> {
        sethostname(&self.hostname).step(|| format!("set the host name {}", self.hostname))?;
        boot_id.write(&self.boot_id)?;
        let root = Path::new("/");
        let written =
            [self.write_hosts(root, former), self.write_machine_id(root, former), self.write_dbus_id(root, former)];
        for written in written {
            if let Err(fault) = written {
                report(&with_cause(&fault));
            }
        }
        Ok(())
    }

    /// Adds the host name to the image's hosts file, and `localhost` unless the file has it: programs look up both. In
    /// a copy of another machine, the name replaces that of the other machine, if users have kept it.
    fn write_hosts(&self, root: &Path, former: Option<&Self>) -> Result<(), StepFault> {
        let write = || {
            let old = read_file(root, "etc/hosts")?.unwrap_or_default();
            let line = hosts_line(&self.hostname);
            let new = match former {
                Some(former) => replaced_line(&old, &hosts_line(&former.hostname), &line),
                None => Some(with_hosts_line(&old, &line)),
            };
            new.map_or(Ok(()), |new| ImageFolder::open(root, "etc")?.replace("hosts", &new, HOSTS_MODE))
        };
        write().step(|| "write /etc/hosts".to_owned())
    }

    fn write_machine_id(&self, root: &Path, former: Option<&Self>) -> Result<(), StepFault> {
        let write = || {
            if former.is_some_and(|former| !former.has_machine_id(root, "etc/machine-id")) {
                return Ok(());
            }
            ImageFolder::open(root, "etc")?.replace("machine-id", self.machine_id_line().as_bytes(), ID_MODE)
        };
        write().step(|| "write /etc/machine-id".to_owned())
    }

    /// Writes the machine id to D-Bus's own file, if the image has that file. It is a link in most images.
    fn write_dbus_id(&self, root: &Path, former: Option<&Self>) -> Result<(), StepFault> {
        const PATH: &str = "var/lib/dbus/machine-id";
        if former.is_some_and(|former| !former.has_machine_id(root, PATH)) {
            return Ok(());
        }
        let write = || match ImageFolder::open(root, "var/lib/dbus") {
            Ok(folder) if folder.has_regular_file("machine-id") => {
                folder.replace("machine-id", self.machine_id_line().as_bytes(), ID_MODE)
            }
            Ok(_) | Err(_) => Ok(()),
        };
        write().step(|| "write /var/lib/dbus/machine-id".to_owned())
    }

    /// Returns whether `path`, relative to `root`, leads to a file with this machine's id.
    fn has_machine_id(&self, root: &Path, path: &str) -> bool {
        read_file(root, path).is_ok_and(|file| file.is_some_and(|text| text == self.machine_id_line().as_bytes()))
    }

    fn machine_id_line(&self) -> String {
        format!("{}\n", hex(&self.machine_id))
    }
}

fn hosts_line(hostname: &str) -> String {
    format!("127.0.0.1 {hostname}\n")
}

/// Returns the hosts file `old` with `line` at its end.
fn with_hosts_line(old: &[u8], line: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(old);
    let names = |line: &str| {
        line.split('#').next().unwrap_or_default().split_whitespace().skip(1).any(|name| name == "localhost")
    };
    let localhost = if text.lines().any(names) { "" } else { LOCALHOST };
    let gap = if old.is_empty() || old.ends_with(b"\n") { "" } else { "\n" };
    [localhost.as_bytes(), old, gap.as_bytes(), line.as_bytes()].concat()
}

/// Returns `text` with the line `new` in place of the line `old`; `None` if `text` does not contain it.
fn replaced_line(text: &[u8], old: &str, new: &str) -> Option<Vec<u8>> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    *lines.iter_mut().find(|line| **line == old.as_bytes())? = new.as_bytes();
    Some(lines.concat())
}

/// The file that users see in place of the kernel's boot id. It is empty until the machine has an identity.
#[derive(Debug)]
pub(crate) struct BootIdFile(File);

impl BootIdFile {
    /// Mounts an empty file over the kernel's boot id, in the mount namespace of this process. User processes can
    /// change neither the mount nor the file. The process must be root, and no user process may run.
    pub(crate) fn mount() -> Result<Self, StepFault> {
        let file = OpenOptions::new().write(true).create_new(true).mode(ID_MODE).open(BOOT_ID_SOURCE);
        let file = file.step(|| format!("create {BOOT_ID_SOURCE}"))?;
        let step = || format!("mount a file over {BOOT_ID}");
        mount(Some(BOOT_ID_SOURCE), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).step(step)?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | HARMLESS;
        mount(None::<&str>, BOOT_ID, None::<&str>, read_only, None::<&str>).step(step)?;
        fs::remove_file(BOOT_ID_SOURCE).step(|| format!("remove {BOOT_ID_SOURCE}"))?;
        Ok(Self(file))
    }

    fn write(&mut self, id: &[u8; 16]) -> Result<(), StepFault> {
        // All ids have the same length, so this also replaces another machine's id, in one write.
        let written = self.0.write_all_at(format!("{}\n", hyphenated(id)).as_bytes(), 0);
        written.step(|| "write the boot id".to_owned())
    }
}

fn hyphenated(uuid: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let (clock, node) = rest.split_at(2);
    [&[*a, *b, *c, *d][..], &[*e, *f], &[*g, *h], clock, node].map(hex).join("-")
}

// QEMU's user-mode emulation, which runs the tests for aarch64, has no `openat2`.
#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    const ID: [u8; 16] = [0x0f, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 0xff];
    const LINE: &str = "0f0102030405460788090a0b0c0d0eff\n";

    fn identity() -> Identity {
        Identity { hostname: "bee".to_owned(), boot_id: ID, machine_id: ID }
    }

    fn image() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        root
    }

    #[test]
    fn ids_have_the_usual_forms() {
        assert_eq!(hyphenated(&ID), "0f010203-0405-4607-8809-0a0b0c0d0eff");
        assert_eq!(identity().machine_id_line(), LINE);
    }

    #[test]
    fn machine_id_replaces_that_of_the_image() {
        let root = image();
        let path = root.path().join("etc/machine-id");
        for old in ["", "uninitialized\n", "0123456789abcdef0123456789abcdef\n"] {
            fs::write(&path, old).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
            identity().write_machine_id(root.path(), None).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), LINE);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, ID_MODE);
            fs::remove_file(&path).unwrap();
        }
        identity().write_machine_id(root.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), LINE);
        let names: Vec<_> = fs::read_dir(root.path().join("etc")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [path]);
    }

    #[test]
    fn links_of_the_image_are_replaced_and_not_followed() {
        let (root, outside) = (image(), tempfile::tempdir().unwrap());
        let target = outside.path().join("target");
        fs::write(&target, "").unwrap();
        for to in [target.as_path(), Path::new("/dev/full"), Path::new("none"), Path::new("..")] {
            for name in ["machine-id", "hosts"] {
                symlink(to, root.path().join("etc").join(name)).unwrap();
            }
            identity().write_machine_id(root.path(), None).unwrap();
            identity().write_hosts(root.path(), None).unwrap();
            for name in ["machine-id", "hosts"] {
                let path = root.path().join("etc").join(name);
                assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{name} {}", to.display());
                fs::remove_file(&path).unwrap();
            }
            assert_eq!(fs::read_to_string(&target).unwrap(), "");
        }
    }

    #[test]
    fn folder_in_place_of_a_file_is_kept_and_reported() {
        let root = image();
        for name in ["etc/machine-id/below", "etc/hosts/below"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let fault = identity().write_machine_id(root.path(), None).unwrap_err();
        assert_eq!(with_cause(&fault), "failed to write /etc/machine-id: Is a directory (os error 21)");
        let fault = identity().write_hosts(root.path(), None).unwrap_err();
        assert_eq!(with_cause(&fault), "failed to write /etc/hosts: Is a directory (os error 21)");
        // Without the temporary files.
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 2);
    }

    #[test]
    fn hosts_file_keeps_its_lines_and_gets_the_host_name() {
        let root = image();
        let path = root.path().join("etc/hosts");
        let own = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 bee\n";
        for (old, new) in [
            ("", own),
            ("10.0.0.1 a b", &own.replace("127.0.0.1 bee", "10.0.0.1 a b\n127.0.0.1 bee")),
            ("# 127.0.0.1 localhost\n", &own.replace("127.0.0.1 bee", "# 127.0.0.1 localhost\n127.0.0.1 bee")),
            ("127.0.0.1\tlocalhost # own\n", "127.0.0.1\tlocalhost # own\n127.0.0.1 bee\n"),
        ] {
            fs::write(&path, old).unwrap();
            identity().write_hosts(root.path(), None).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), new);
        }
        // A link to a file of the image counts as that file, which is kept.
        fs::write(root.path().join("etc/other"), "127.0.0.1 localhost\n").unwrap();
        fs::remove_file(&path).unwrap();
        symlink("/etc/other", &path).unwrap();
        identity().write_hosts(root.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "127.0.0.1 localhost\n127.0.0.1 bee\n");
        assert_eq!(fs::read_to_string(root.path().join("etc/other")).unwrap(), "127.0.0.1 localhost\n");
        // Bytes that are not UTF-8.
        fs::write(&path, b"1.2.3.4 localhost caf\xe9\n").unwrap();
        identity().write_hosts(root.path(), None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1.2.3.4 localhost caf\xe9\n127.0.0.1 bee\n");
        // A file that is too large is left alone.
        fs::write(&path, " ".repeat(2 * 1024 * 1024)).unwrap();
        assert!(identity().write_hosts(root.path(), None).is_err());
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * 1024 * 1024);
        // A pipe, which would block whoever opens it.
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        identity().write_hosts(root.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
    }

    #[test]
    fn copy_of_a_machine_gets_its_own_files_unless_users_have_changed_them() {
        let (root, former) = (image(), identity());
        let copy = Identity { hostname: "wasp".to_owned(), boot_id: [1; 16], machine_id: [1; 16] };
        let read = |name: &str| fs::read_to_string(root.path().join("etc").join(name)).unwrap();
        let copied_hosts = format!("{LOCALHOST}127.0.0.1 wasp\n");
        former.write_hosts(root.path(), None).unwrap();
        former.write_machine_id(root.path(), None).unwrap();
        copy.write_hosts(root.path(), Some(&former)).unwrap();
        copy.write_machine_id(root.path(), Some(&former)).unwrap();
        assert_eq!((read("hosts"), read("machine-id")), (copied_hosts, copy.machine_id_line()));
        for name in ["hosts", "machine-id"] {
            fs::remove_file(root.path().join("etc").join(name)).unwrap();
            fs::write(root.path().join("etc").join(name), "mine").unwrap();
        }
        former.write_hosts(root.path(), Some(&copy)).unwrap();
        former.write_machine_id(root.path(), Some(&copy)).unwrap();
        assert_eq!((read("hosts"), read("machine-id")), ("mine".to_owned(), "mine".to_owned()));
        for name in ["hosts", "machine-id"] {
            fs::remove_file(root.path().join("etc").join(name)).unwrap();
        }
        former.write_hosts(root.path(), Some(&copy)).unwrap();
        former.write_machine_id(root.path(), Some(&copy)).unwrap();
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 0);
    }

    #[test]
    fn dbus_has_the_id_where_it_had_a_file() {
        let root = image();
        identity().write_dbus_id(root.path(), None).unwrap();
        assert!(!root.path().join("var").exists());
        let folder = root.path().join("var/lib/dbus");
        fs::create_dir_all(&folder).unwrap();
        identity().write_dbus_id(root.path(), None).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        symlink("/etc/machine-id", folder.join("machine-id")).unwrap();
        identity().write_dbus_id(root.path(), None).unwrap();
        assert_eq!(fs::read_link(folder.join("machine-id")).unwrap(), Path::new("/etc/machine-id"));
        fs::remove_file(folder.join("machine-id")).unwrap();
        fs::write(folder.join("machine-id"), "old").unwrap();
        identity().write_dbus_id(root.path(), None).unwrap();
        assert_eq!(fs::read_to_string(folder.join("machine-id")).unwrap(), LINE);
    }
}
