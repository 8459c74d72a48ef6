// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Creates folders that a machine needs, whatever the image has in their place.
//!
//! Images of bootc and ostree contain links to folders that only their own boot creates, such as `/home` to `var/home`.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::step::{StepFault, WithStep};

/// Maximum number of links in a path. Linux follows as many.
const LINKS_MAX: usize = 40;

/// Folders in which the kernel or the agent puts everything, so that links of the image must not lead there.
const KERNEL_FOLDERS: [&str; 3] = ["dev", "proc", "sys"];

/// Creates the folder, and the missing folders above it, with the mode 0755. Links are followed, and the missing target
/// of a link is created as well. A link that leads to itself or into [`KERNEL_FOLDERS`], and anything else that is
/// neither a link nor a folder, is replaced by a folder. The path must be absolute.
pub(super) fn make_folder(path: &str) -> Result<(), StepFault> {
    make_in(Path::new("/"), Path::new(path)).step(|| format!("create {path}"))
}

/// Like [`make_folder`], but a link at the path itself is replaced, so that nothing else of the image is there.
pub(super) fn make_own_folder(path: &str) -> Result<(), StepFault> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        fs::remove_file(path).step(|| format!("replace {path}"))?;
    }
    make_folder(path)
}

/// Creates `path` as seen by a process whose root is `root`.
fn make_in(root: &Path, path: &Path) -> io::Result<()> {
    // Each further turn has one link less to follow.
    while let Some(link) = make_or_find_bad_link(root, path)? {
        fs::remove_file(link)?;
    }
    Ok(())
}

/// Creates `path`, or returns the link in it that leads into [`KERNEL_FOLDERS`].
fn make_or_find_bad_link(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let mut here = root.to_path_buf();
    let mut pending: VecDeque<OsString> = names(path).collect();
    let (mut links, mut latest_link) = (0, None);
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            if here != root {
                here.pop();
            }
            continue;
        }
        if here == root && latest_link.is_some() && KERNEL_FOLDERS.iter().any(|folder| name == *folder) {
            return Ok(latest_link);
        }
        let next = here.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(meta) if meta.is_dir() => here = next,
            Ok(meta) if meta.is_symlink() && links < LINKS_MAX => {
                links += 1;
                let target = fs::read_link(&next)?;
                latest_link = Some(next);
                if target.is_absolute() {
                    here = root.to_path_buf();
                }
                for name in names(&target).rev() {
                    pending.push_front(name);
                }
            }
            Ok(_) => {
                fs::remove_file(&next)?;
                here = create(next)?;
            }
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => here = create(next)?,
            Err(fault) => return Err(fault),
        }
    }
    Ok(None)
}

fn create(folder: PathBuf) -> io::Result<PathBuf> {
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Returns the names in a path, and `..` for the folder above.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;

    fn root() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    /// Creates `path` in a root with one link, and checks which folder is created.
    fn check(link: &str, target: &str, path: &str, expected: &str) {
        let root = root();
        symlink(target, root.path().join(link)).unwrap();
        make_in(root.path(), Path::new(path)).unwrap();
        let made = root.path().join(expected);
        assert!(fs::symlink_metadata(&made).unwrap().is_dir(), "{link} -> {target}: {expected}");
        // Again, with everything in place.
        make_in(root.path(), Path::new(path)).unwrap();
        assert!(fs::symlink_metadata(root.path().join(link)).unwrap().is_symlink());
    }

    #[test]
    fn missing_targets_of_links_are_created() {
        check("home", "var/home", "/home", "var/home");
        check("home", "var/home", "/home/sandbox", "var/home/sandbox");
        check("run", "/tmp/./run/", "/run/waggle", "tmp/run/waggle");
        check("root", "../../..//var/root", "/root", "var/root");
        check("tmp", "a/../b", "/tmp", "b");
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let (root, outside) = (root(), root());
        let target = outside.path().join("out");
        symlink(&target, root.path().join("tmp")).unwrap();
        make_in(root.path(), Path::new("/tmp")).unwrap();
        assert!(!target.exists());
        assert!(root.path().join(target.strip_prefix("/").unwrap()).is_dir());
    }

    #[test]
    fn everything_else_is_replaced_by_a_folder() {
        let root = root();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "text").unwrap();
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        symlink("cycle", path("cycle")).unwrap();
        symlink("two", path("one")).unwrap();
        symlink("/one", path("two")).unwrap();
        symlink("file", path("link")).unwrap();
        symlink("/proc/none", path("to-proc")).unwrap();
        symlink("a/../dev/null", path("to-dev")).unwrap();
        symlink("to-sys/none", path("to-link")).unwrap();
        symlink("sys", path("to-sys")).unwrap();
        let names = ["/file", "/file/below", "/pipe/below", "/cycle", "/one/below", "/link"];
        for name in names.into_iter().chain(["/to-proc", "/to-dev/below", "/to-link"]) {
            make_in(root.path(), Path::new(name)).unwrap();
            assert!(fs::metadata(path(name.trim_start_matches('/'))).unwrap().is_dir(), "{name}");
        }
        for name in KERNEL_FOLDERS {
            assert!(!path(name).exists(), "{name}");
        }
        // Their own paths may be links.
        symlink("kernel/proc", path("proc")).unwrap();
        make_in(root.path(), Path::new("/proc")).unwrap();
        assert!(path("kernel/proc").is_dir() && path("proc").is_symlink());
    }

    #[test]
    fn folder_keeps_its_content() {
        let root = root();
        fs::create_dir_all(root.path().join("run/lock")).unwrap();
        make_in(root.path(), Path::new("/run")).unwrap();
        assert!(root.path().join("run/lock").is_dir());
    }
}
